"""What a service says of itself, and what its owner says: metadata, addresses, tokens, fields."""

import socket
import sys
import threading
from dataclasses import fields, replace

import pytest
import torch
from asking import connect, expected, pictures, refused
from serving import CLASSES, SHAPE, metadata

from mad.errors import MadError
from mad.own.service import Service
from mad.storage.fingerprint import describe, settings

TWO = [{"name": each, "shape": [-1, CLASSES], "datatype": "FP32"} for each in ("answers", "more")]
OPEN = "leaves the layout of its images open: set victim.service.layout="
CUBE = {"shape": (3, 3, 3)}
METADATA = {
    "other images": ({"shape": [-1, 3, 32, 32]}, {}, "takes [-1, 3, 32, 32], which is no batch of [3, 4, 5] nor"),
    "flat": ({"shape": [-1, 60]}, {}, "takes [-1, 60], which is no batch of"),
    "other layout": ({}, {"layout": "nhwc"}, "takes [-1, 3, 4, 5], which is no batch of [4, 5, 3] images: see victim"),
    "either layout": (
        {"shape": [-1, -1, -1, -1]},
        {},
        OPEN + "nchw",
    ),
    "a cube": (
        {"shape": [-1, 3, 3, 3]},
        CUBE,
        OPEN + "nchw or nhwc",
    ),
    "batches of two": ({"shape": [2, 3, 4, 5]}, {}, "takes 2 images a request, no fewer"),
    "no shape": ({"inputs": [{"name": "a", "datatype": "FP32"}]}, {}, "leaves the layout of its images open"),
    "classes": ({}, {"classes": 7}, "answers with [-1, 6], expected 7 classes"),
    "labels": (
        {"outputs": [{"name": "answers", "shape": [-1]}]},
        {},
        "answers look like labels: set victim.answers=la",
    ),
    "no labels": ({}, {"answers": "labels"}, "answers with [-1, 6], not with labels: set victim.answers=posteriors"),
    "datatype": ({"datatype": "INT8"}, {}, "takes INT8: set victim.service.datatype to one of FP32, FP64, FP16, UINT8"),
    "two outputs": ({"outputs": TWO}, {}, "has the outputs answers, more: set victim.service.output to one of them"),
    "two inputs": ({"inputs": TWO}, {}, "has the inputs answers, more: set victim.service.input to one of them"),
    "another name": ({}, {"input": "image"}, "has the inputs images: set victim.service.input to one of them"),
    "no inputs": (
        {"inputs": []},
        {},
        "describes no inputs: set victim.service.input, .layout and .datatype",
    ),
    "no objects": ({"inputs": ["images"]}, {}, "has no v2 metadata: it describes no inputs"),
}


@pytest.mark.parametrize("what", METADATA)
def test_metadata_that_does_not_fit(server, what):
    changes, fields, line = METADATA[what]
    server.tell(metadata=metadata(**changes))
    assert refused(server, **fields).startswith(line)
    assert server.requests() == 0, "a query was spent"


def test_what_the_metadata_leaves_open_can_be_set(server):
    images = pictures(5)
    server.tell(metadata=metadata(shape=[-1, -1, -1, -1]))
    with connect(server, layout="nhwc") as connection:
        torch.testing.assert_close(connection(images), expected(images), rtol=0, atol=1e-6)
    server.tell(metadata=metadata(outputs=TWO))
    with connect(server, output="answers") as connection:
        torch.testing.assert_close(connection(images), expected(images), rtol=0, atol=1e-6)
    server.tell(metadata=metadata(shape=[1, 3, 4, 5]), requests=0)
    with connect(server) as connection:
        torch.testing.assert_close(connection(images), expected(images), rtol=0, atol=1e-6)
    assert server.requests() == 5


def test_a_model_that_is_not_there(server):
    server.tell(metadata=[])
    assert refused(replace_url(server, "other")).startswith("has no /ready (404)")


def replace_url(server, model):
    """A server by another model's name."""

    class Other:
        url = server.url.replace("toy", model)

    return Other


# The token.


def test_the_token_is_sent_and_shown_nowhere(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MAD_TOY_TOKEN", "s3cret-Token\n")
    server.tell(token="s3cret-Token")
    with connect(server, tmp_path, token="MAD_TOY_TOKEN") as connection:
        torch.testing.assert_close(connection(pictures(3)), expected(pictures(3)), rtol=0, atol=1e-6)
    monkeypatch.setenv("MAD_TOY_TOKEN", "an0ther")
    said = refused(server, token="MAD_TOY_TOKEN", sleep=[].append, retries=3)  # the server echoes the header
    assert said == "answers 403 to the token in MAD_TOY_TOKEN: Bearer ***" or said.startswith(
        "answers 403 to the token"
    )
    assert "an0ther" not in said
    assert refused(server).startswith("answers 401 to no token: set victim.service.token")
    shown = "".join(capfd.readouterr()) + repr(Service(server.url, token="MAD_TOY_TOKEN"))
    assert not [each for each in ("s3cret", "an0ther") if each in shown]
    assert not [file for file in tmp_path.rglob("*") if b"s3cret" in file.read_bytes()]


def test_a_token_that_is_not_there(monkeypatch):
    monkeypatch.delenv("MAD_NONE", raising=False)
    with pytest.raises(MadError, match="the environment variable MAD_NONE is not set"):
        Service("http://127.0.0.1:1/v2/models/toy", token="MAD_NONE").connect(SHAPE, CLASSES, None)
    monkeypatch.setenv("MAD_NONE", "two words")
    with pytest.raises(MadError, match="MAD_NONE holds no token") as caught:
        Service("http://127.0.0.1:1/v2/models/toy", token="MAD_NONE").connect(SHAPE, CLASSES, None)
    assert "two words" not in str(caught.value)


def test_a_token_in_place_of_its_name_is_not_shown():
    with pytest.raises(MadError, match="must be the NAME of an environment variable") as caught:
        Service("http://a/v2/models/toy", token="hf_abcDEF123")
    assert "abc" not in str(caught.value)


def test_no_password_is_found_and_sent(server, tmp_path, monkeypatch):
    """Requests would send what ~/.netrc has for a host."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.tell(token="something")
    assert refused(server).startswith("answers 401")


# The recipe.


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8080/v2/models/a",
        "ftp://a/v2",
        "http://",
        "http://a:port/v2",
        "http://a b/v2",
        "http://a/\x1b",
        7,
    ],
)
def test_what_is_no_address(url):
    with pytest.raises(MadError, match=r"victim.url must be an address such as http://"):
        Service(url)


def test_addresses_that_would_leak_or_fail():
    for url in ("http://me:s3cret@a/v2/models/b", "http://a/v2/models/b?key=s3cret"):
        with pytest.raises(MadError, match="must hold no password") as caught:
            Service(url)
        assert "s3cret" not in str(caught.value)
    with pytest.raises(MadError, match="must end before /infer"):
        Service("http://a/v2/models/b/infer")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("answers", "probabilities"),
        ("layout", "chw"),
        ("datatype", "INT8"),
        ("input", ""),
        ("timeout", 0),
        ("retries", -1),
        ("rate", 0),
        ("concurrency", 0),
        ("batch", 1.5),
        ("verify", None),
    ],
)
def test_fields_that_cannot_be(field, value):
    with pytest.raises(MadError, match=rf"victim\.(service\.)?{field} must be"):
        Service("http://a/v2/models/b", **{field: value})


def test_a_fingerprint_has_what_changes_answers():
    plain = Service("http://a/v2/models/b")
    how = {"token": "A", "timeout": 1, "retries": 0, "rate": 1.0, "concurrency": 1, "batch": 1, "verify": False}
    what = {"answers": "logits", "input": "x", "output": "y", "layout": "nhwc", "datatype": "UINT8"}
    assert {each.name for each in fields(Service)} == {"url", *how, *what}
    for field, value in how.items():
        assert describe(replace(plain, **{field: value})) == describe(plain)
        assert settings(replace(plain, **{field: value})) == ""
    for field, value in what.items():
        assert describe(replace(plain, **{field: value})) != describe(plain)


def test_an_odd_host_is_one_line():
    for host in ("a" * 70 + ".b", "a..b"):
        with pytest.raises(MadError, match=f"http://{host}/v2/models/a cannot be") as caught:
            Service(f"http://{host}/v2/models/a", retries=0).connect(SHAPE, CLASSES, None)
        assert len(str(caught.value).splitlines()) == 1


def test_certificates_that_are_not_there(tmp_path):
    with pytest.raises(MadError, match=r"victim.service.verify: there is no file .*ca.pem"):
        Service("https://127.0.0.1:1/v2/models/a", verify=str(tmp_path / "ca.pem")).connect(SHAPE, CLASSES, None)


@pytest.mark.parametrize(
    ("said", "tries", "message"),
    [
        (b"", 3, r"cannot be reached, or broke off \(.*EOF.*\(tries: 3\)"),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", 1, r"cannot be asked over TLS \("),
    ],
)
def test_a_handshake_that_breaks_off_is_tried_again(said, tries, message):
    asked = []

    def answer(listening):
        while True:
            try:
                taken, _ = listening.accept()
            except OSError:  # closed
                return
            with taken:
                taken.settimeout(10)
                asked.append(taken.recv(65536))
                taken.sendall(said)
                taken.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,), daemon=True)
        thread.start()
        service = Service(f"https://127.0.0.1:{listening.getsockname()[1]}/v2/models/toy", retries=2)
        with pytest.raises(MadError, match=message):
            service.connect(SHAPE, CLASSES, None, sleep=lambda seconds: None)
        assert len(asked) == tries
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_requests_is_needed_to_connect(monkeypatch):
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(MadError, match=r"a service needs requests: pip install 'mad\[http\]'"):
        Service("http://127.0.0.1:1/v2/models/toy").connect(SHAPE, CLASSES, None)


def test_it_says_what_it_found_and_who_may_ask(server, capfd):
    with connect(server):
        pass
    line = " ".join(capfd.readouterr().err.split())
    assert line == (
        f"{server.url} takes FP32 images (3, 4, 5) as nchw, answers with 6 posteriors; 0 answers are here. "
        "Ask only services that you own or may test"
    )

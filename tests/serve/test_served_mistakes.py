"""What is not a valid request gets a 4xx and one line; it costs no query, and the server goes on."""

import gzip
import http.client
import json
import os
import socket
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("kserve")
pytestmark = [pytest.mark.serve, pytest.mark.usefixtures("answered")]

from serving_toys import MODEL, SHAPE, pictures, question, running  # noqa: E402

from mad.serve.wire import Refused, of_numbers  # noqa: E402

INFER = f"{MODEL}/infer"
GOOD = question(pictures(2))


def changed(**what):
    return {"inputs": [{**GOOD["inputs"][0], **what}]}


MISTAKES = {
    "no body": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"inputs": "\xff"}',
    "deep": b"[" * 100_000,
    "a list": [],
    "a number": 1,
    "no inputs": {},
    "null": {"inputs": None},
    "no input": {"inputs": []},
    "two inputs": {"inputs": GOOD["inputs"] * 2},
    "an input that is none": {"inputs": [1]},
    "another name": changed(name="pixels"),
    "no name": changed(name=None),
    "another datatype": changed(datatype="BYTES"),
    "a datatype that is none": changed(datatype=[1]),
    "FP16 in JSON": changed(datatype="FP16"),
    "another shape": changed(shape=[2, 8, 8, 1]),
    "a flat shape": changed(shape=[128]),
    "a shape of floats": changed(shape=[2.0, 1, 8, 8]),
    "a shape of flags": changed(shape=[True, 1, 8, 8], data=GOOD["inputs"][0]["data"][:64]),
    "a negative shape": changed(shape=[-1, 1, 8, 8]),
    "no images": changed(shape=[0, 1, 8, 8], data=[]),
    "too many images": changed(shape=[10**6, 1, 8, 8]),
    "a shape beyond 64 bits": changed(shape=[10**30, 1, 8, 8]),
    "too few numbers": changed(data=[0.5]),
    "too many numbers": changed(data=[0.5] * 129),
    "no data": changed(data=None),
    "texts": changed(data=["0.5"] * 128),
    "objects": changed(data=[{}] * 128),
    "ragged rows": changed(data=[[0.5] * 100, [0.5] * 28]),
    "rows of another length": changed(data=[[0.5] * 32] * 4),
    "flags": changed(data=[True] * 128),
    "numbers beyond float64": changed(data=[10**400] * 128),
    "numbers beyond float32": changed(data=[1e300] * 128),
    "pixels to 255": changed(data=[255.0] * 128),
    "pixels below": changed(data=[-5.0] * 128),
    "NaN": b'{"inputs": [{"name": "images", "shape": [1,1,8,8], "datatype": "FP32", "data": [NaN]}]}',
    "UINT8 of 256": changed(datatype="UINT8", data=[256] * 128),
    "UINT8 of halves": changed(datatype="UINT8", data=[0.5] * 128),
    "parameters that are none": changed(parameters=[1]),
    "a binary size without bytes": changed(data=None, parameters={"binary_data_size": 512}),
    "a binary size that is none": changed(data=None, parameters={"binary_data_size": "512"}),
    "outputs that are none": {**GOOD, "outputs": {"name": "labels"}},
    "an output that is none": {**GOOD, "outputs": [1]},
    "another output": {**GOOD, "outputs": [{"name": "logits"}]},
    "an output twice": {**GOOD, "outputs": [{"name": "labels"}] * 2},
    "an output without a name": {**GOOD, "outputs": [{}]},
    "an id that is no text": {**GOOD, "id": 7},
    "a long id": {**GOOD, "id": "x" * 200},
    "whole parameters that are none": {**GOOD, "parameters": 3},
}


def one_line(status, content, expected=(400,)):
    assert status in expected, content
    said = json.loads(content)
    assert list(said) == ["error"]
    assert 0 < len(said["error"].splitlines()[0]) < 400
    assert len(said["error"].splitlines()) == 1
    return said["error"]


def test_nested_numbers_have_the_order_of_their_shape():
    """Channels last would be read as other images."""
    data = np.arange(96).reshape(2, 4, 4, 3)
    with pytest.raises(Refused, match=r"nested as \[2, 4, 4, 3\], and its shape is \[2, 3, 4, 4\]"):
        of_numbers("UINT8", (2, 3, 4, 4), data.tolist())
    right = data.transpose(0, 3, 1, 2)
    for each in (right, right.reshape(2, 3, 16), right.reshape(2, 48), right.reshape(96)):
        assert torch.equal(of_numbers("UINT8", (2, 3, 4, 4), each.tolist()), torch.tensor(right) / 255)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_request_that_is_not_valid(server, name):
    body = MISTAKES[name]
    status, content, _ = server.call(INFER, body if isinstance(body, bytes) else json.dumps(body))
    one_line(status, content)


@pytest.mark.parametrize(
    ("header", "after"),
    [
        ("x", b""),
        ("-5", b""),
        ("9" * 30, b""),
        ("0", b""),
        ("5", b""),
        (None, b"1234"),
        ("", b""),
        ("\u0663".encode(), b""),
    ],
)
def test_binary_requests_that_are_not_valid(server, header, after):
    tensor = {"name": "images", "shape": [1, *SHAPE], "datatype": "FP32", "parameters": {"binary_data_size": 4}}
    told = json.dumps({"inputs": [tensor]}).encode()
    headers = {} if header is None else {"Inference-Header-Content-Length": header}
    status, content, _ = server.call(INFER, told + after, headers=headers)
    one_line(status, content)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.5, 2.5])
def test_binary_pixels_that_are_not_valid(server, value):
    images = pictures(1)
    images[0, 0, 3, 3] = value
    tensor = {"name": "images", "shape": [1, *SHAPE], "datatype": "FP32", "parameters": {"binary_data_size": 256}}
    told = json.dumps({"inputs": [tensor]}).encode()
    header = {"Inference-Header-Content-Length": str(len(told))}
    said = one_line(*server.call(INFER, told + images.numpy().tobytes(), headers=header)[:2])
    assert said.startswith("the API takes float images in [0, 1], got")


def test_large_and_compressed_bodies(server):
    most = server.service.shape.bytes
    headers = {"Content-Length": str(most + 1)}
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        lines = [f"POST {INFER} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())  # not a byte of the body has to be sent
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        part, found = b"100000\r\n" + b"x" * 0x100000 + b"\r\n", b""
        try:
            for _ in range(most // 0x100000 + 2):
                connection.sendall(part)
            found = connection.recv(4096)
        except ConnectionError:  # it closed the connection while we wrote
            found = b"HTTP/1.1 413 "
        assert found.startswith(b"HTTP/1.1 413 ")
    bomb = gzip.compress(b"0" * 10**8)
    one_line(*server.call(INFER, bomb, headers={"Content-Encoding": "gzip"})[:2], expected=(415,))


def test_slow_clients_and_slow_answers(toy_deployment, tmp_path, monkeypatch):
    with running(toy_deployment, timeout=0.3) as it:
        with socket.create_connection(("127.0.0.1", it.port), timeout=10) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
        answer = it.service.engine._both
        monkeypatch.setattr(it.service.engine, "_both", lambda *given: (time.sleep(0.6), answer(*given))[1])
        status, said = it.infer(pictures(1))
        assert (status, said["error"]) == (503, "no answer within 0.3 s")
    with running(toy_deployment, max_images=8, waiting=8) as it:
        it.service._waiting = 7
        assert it.infer(pictures(2))[0] == 503
        it.service._waiting = 0
        assert it.infer(pictures(8))[0] == 200
        assert it.infer(pictures(9))[0] == 400


def test_as_many_connections_as_the_owner_says(toy_deployment):
    with running(toy_deployment, connections=1) as it:
        held = http.client.HTTPConnection(it.host, timeout=20)
        for _ in range(2):
            held.request("GET", MODEL)
            assert held.getresponse().read().startswith(b'{"name":"toy"')
        status, content, headers = it.call(INFER, json.dumps(GOOD))
        assert one_line(status, content, (503,)) == "too many connections at a time"
        assert (headers["Retry-After"], headers["Connection"]) == ("1", "close")
        held.close()


def test_a_server_that_cannot_answer_is_not_ready(toy_deployment):
    with running(toy_deployment, max_bytes=2000) as it:
        assert it.infer(pictures(1), id="x" * 100)[0] == 200
        one_line(*it.call(INFER, json.dumps(question(pictures(2))).encode())[:2], expected=(413,))
        assert it.call("/v2/health/ready")[0] == 200
        it.service.engine.close()
        for path in ("/v2/health/ready", f"{MODEL}/ready"):
            assert one_line(*it.call(path)[:2], expected=(503,)) == "no request is answered now"
        assert it.call("/v2/health/live")[0] == 200


def test_a_defense_that_breaks_is_a_line(toy_deployment, monkeypatch, capfd):
    with running(toy_deployment) as it:

        def broken(*given):
            raise RuntimeError("of 2\nlines")

        monkeypatch.setattr(it.service.engine, "_both", broken)
        status, said = it.infer(pictures(1))
        assert (status, said["error"]) == (503, "this cannot be answered now; the server's own log says why")
        assert "a request could not be answered: of 2 lines\n" in capfd.readouterr().err


def test_other_addresses(server):
    for path, method, expected in [
        ("/", "GET", 404),
        ("/nothing", "GET", 404),
        ("/v2/models/other", "GET", 404),
        ("/v2/models/other/ready", "GET", 404),
        ("/v2/models/other/infer", "POST", 404),
        (f"{MODEL}/versions/2/infer", "POST", 404),
        (f"{MODEL}/versions/2", "GET", 404),
        (INFER, "GET", 405),
        (INFER, "DELETE", 405),
        ("/v2/repository/models/toy/unload", "POST", 404),
        ("/v1/models/toy:predict", "POST", 404),
        ("/docs", "GET", 404),
    ]:
        status, content, _ = server.call(path, b"{}" if method == "POST" else None, method=method)
        one_line(status, content, (expected,))


def test_bytes_that_are_no_http(server):
    for sent in (b"\x00" * 100, b"GET\r\n\r\n", b"\x16\x03\x01" + os.urandom(200), b"POST " + b"x" * 200_000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            try:
                connection.sendall(sent + b"\r\n\r\n")
                assert connection.recv(4096)[:12] in (b"HTTP/1.1 400", b"")
            except OSError:  # it closed the connection while we wrote
                pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_requests(server, answered, data):
    body = json.loads(json.dumps(GOOD))
    if data.draw(st.booleans()):
        body["inputs"][0][data.draw(NAMES)] = data.draw(JSON)
    else:
        body[data.draw(st.sampled_from(["inputs", "outputs", "parameters", "id"]))] = data.draw(JSON)
    text = json.dumps(body).encode()
    cut = data.draw(st.integers(0, 20))
    text, length = text[: len(text) - cut], data.draw(st.none() | st.integers(-1, len(text) + 3))
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    status, content, _ = server.call(INFER, text, headers=headers)
    if status == 200:
        answered.append(2)  # what was changed left it valid
    else:
        one_line(status, content)

"""A victim behind HTTP: what is asked, what is kept, and what goes wrong. The server is a process on this machine."""

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import CLASSES, SHAPE, logits, metadata, name, served, softmax

from mad.errors import MadError
from mad.own import transport
from mad.own.answer_cache import Answers
from mad.own.service import Service
from mad.own.transport import Pace
from mad.storage.fingerprint import describe, settings

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with served(tmp_path_factory.mktemp("server")) as it:
        yield it


@pytest.fixture
def server(running):
    running.reset()
    return running


def pictures(count, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def expected(images):
    return torch.from_numpy(softmax(logits(images.double().numpy()))).float()


def names(images):
    return [name(each) for each in images.numpy()]


def connect(server, cache=None, sleep=None, shape=SHAPE, classes=CLASSES, **fields):
    service = Service(**{"url": server.url, "batch": 4, "retries": 0, **fields})
    return service.connect(shape, classes, cache, sleep=sleep)


def refused(server, images=None, **how):
    """The one line that a query ends in."""
    with pytest.raises(MadError) as caught, connect(server, **how) as connection:
        connection(pictures(6) if images is None else images)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith(server.url)
    return text.removeprefix(server.url).strip(" :")


def until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "UINT8"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_answers_are_those_of_the_model(server, layout, datatype):
    server.tell(metadata=metadata(layout, datatype))
    images = pictures(11)
    sent = {"UINT8": (images * 255).round() / 255, "FP16": images.half().float()}.get(datatype, images)
    with connect(server) as connection:
        found = connection(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(sent), rtol=0, atol=1e-6)
    assert (connection.asked, connection.cached, connection.retried) == (11, 0, 0)
    assert (connection.wire.layout, connection.wire.datatype) == (layout, datatype)


def test_logits_and_labels_become_posteriors(server):
    images = pictures(5)
    server.tell(answers="logits")
    with connect(server, answers="logits") as connection:
        torch.testing.assert_close(connection(images), expected(images), rtol=0, atol=1e-6)
    outputs = [{"name": "answers", "shape": [-1], "datatype": "INT64"}]
    server.tell(answers="labels", metadata=metadata(outputs=outputs))
    with connect(server, answers="labels") as connection:
        found = connection(images)
    assert found.tolist() == torch.eye(CLASSES)[expected(images).argmax(dim=1)].tolist()


def test_each_image_is_asked_about_once(server, tmp_path):
    images = pictures(10)
    twice = torch.cat([images, images.flip(0)])
    with connect(server, tmp_path) as connection:
        torch.testing.assert_close(connection(twice), expected(twice), rtol=0, atol=1e-6)
        assert (connection.asked, connection.cached) == (10, 10)
        connection(images)
        assert (connection.asked, connection.cached) == (10, 20)
        assert connection(images[:0]).shape == (0, CLASSES)
    with connect(server, tmp_path, answers="posteriors", token=None, batch=3) as connection:
        torch.testing.assert_close(connection(images), expected(images), rtol=0, atol=1e-6)
        assert (connection.asked, connection.cached) == (0, 10)
    assert server.answered() == Counter(names(images))


def test_two_addresses_share_nothing(tmp_path):
    one, two = (Service(f"http://a/v2/models/toy{end}").cache_file(tmp_path) for end in ("", "/versions/1"))
    assert one != two
    assert one.parent == two.parent == tmp_path
    assert Service("http://a/v2/models/toy/", token="A").cache_file(tmp_path) == one


def test_a_copied_model_has_the_same_connection(server):
    import copy

    with connect(server) as connection:
        assert copy.deepcopy({"model": connection})["model"] is connection


@pytest.mark.parametrize("kept", [True, False])
def test_many_threads_ask_each_image_once(server, tmp_path, kept):
    images = pictures(24)
    with connect(server, tmp_path if kept else None) as connection, ThreadPoolExecutor(6) as threads:
        for found in threads.map(connection, [images] * 6):
            torch.testing.assert_close(found, expected(images), rtol=0, atol=1e-6)
    assert server.answered() == Counter(names(images))
    assert (connection.asked, connection.cached) == (24, 5 * 24)


# Killed.


def test_a_server_that_is_killed_is_waited_for(tmp_path):
    images, back, waits = pictures(40), threading.Event(), []

    def sleep(seconds):
        waits.append(seconds)
        assert back.wait(30)

    with served(tmp_path) as server:
        server.tell(hold=16)
        with connect(server, tmp_path, sleep, retries=3) as connection, ThreadPoolExecutor(1) as thread:
            asking = thread.submit(connection, images)
            until(lambda: len(connection._answers) == 16)
            server.kill()
            until(lambda: waits)
            server.start()
            back.set()
            torch.testing.assert_close(asking.result(), expected(images), rtol=0, atol=1e-6)
            assert connection.asked == 40
            assert 0 < connection.retried <= 16
        assert server.answered() == Counter(names(images))


CLIENT = """
import sys, torch
from pathlib import Path
from mad.own.service import Service
assert not {"requests", "urllib3"} & {*sys.modules}, "they are imported before they are needed"
from serving import CLASSES, SHAPE
torch.set_num_threads(1)
images = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
service = Service(sys.argv[1], batch=4, concurrency=2)
with service.connect(SHAPE, CLASSES, Path(sys.argv[2])) as connection:
    print("connected", flush=True)
    for part in images.split(20):
        connection(part)
print(connection.asked, connection.cached)
"""


def client(server, cache):
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, server.url, str(cache)],
        cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
        stdout=subprocess.PIPE,
        text=True,
    )


def kept(folder):
    """How many answers the file in a folder holds."""
    found = 0
    for file in folder.glob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(file)) as db, contextlib.suppress(sqlite3.OperationalError):
            found += db.execute("SELECT count(*) FROM answers").fetchone()[0]
    return found


def test_a_client_that_is_killed_loses_no_answer(tmp_path):
    images = pictures(40)
    with served(tmp_path) as server:
        server.tell(hold=24)
        process = client(server, tmp_path / "cache")
        until(lambda: kept(tmp_path / "cache") == 24)
        process.kill()
        process.communicate()
        before = server.answered()
        assert sum(before.values()) == 24
        server.tell(release=True)
        with connect(server, tmp_path / "cache", concurrency=2) as connection:
            torch.testing.assert_close(connection(images), expected(images), rtol=0, atol=1e-6)
        assert (connection.asked, connection.cached) == (16, 24)
        counts = server.answered()
    assert set(counts) == {*names(images)}
    assert {counts[each] for each in before} == {1}
    assert sum(counts.values()) <= 40 + 2 * 4, "more was paid for twice than was under way"


def test_two_clients_pay_once(server, tmp_path):
    server.tell(hold=0)
    both = [client(server, tmp_path) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["connected\n"] * 2
    server.tell(release=True)
    said = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert server.answered() == Counter(names(pictures(40)))
    assert [sum(int(line[place]) for line in said) for place in (0, 1)] == [40, 40]


def test_what_arrives_beside_a_failure_is_kept(server, tmp_path):
    """The first request fails for good while the others are under way."""
    images = pictures(12)
    server.tell(faults=[{"after": 3, "status": 400, "text": "no"}], hold=0)
    with connect(server, tmp_path, concurrency=3) as connection, ThreadPoolExecutor(1) as thread:
        asking = thread.submit(connection, images)
        until(lambda: server.requests() == 3 and connection._transport.stop.is_set())
        assert not asking.done()
        server.tell(release=True)
        with pytest.raises(MadError, match="answers 400: no"):
            asking.result()
    assert kept(tmp_path) == 8
    with connect(server, tmp_path) as connection:
        torch.testing.assert_close(connection(images), expected(images), rtol=0, atol=1e-6)
        assert (connection.asked, connection.cached) == (4, 8)


def test_a_row_that_is_no_answer_costs_no_other(server, tmp_path):
    images = pictures(4)
    rows = softmax(logits(images.double().numpy()))
    rows[2, 3] = np.nan
    outputs = [{"name": "answers", "shape": [4, CLASSES], "datatype": "FP32", "data": rows.tolist()}]
    server.tell(faults=[{"json": {"outputs": outputs}}])
    assert refused(server, images, cache=tmp_path) == "answers with NaN or infinity to 1 images"
    assert kept(tmp_path) == 3
    with connect(server, tmp_path) as connection:
        torch.testing.assert_close(connection(images), expected(images), rtol=0, atol=1e-6)
        assert connection.asked == 1


def test_answers_that_were_taken_for_others_are_not_asked_again(server, tmp_path):
    server.tell(answers="logits")
    assert refused(server, cache=tmp_path) == "answers look like logits: set victim.answers=logits"
    with connect(server, tmp_path, answers="logits") as connection:
        torch.testing.assert_close(connection(pictures(6)), expected(pictures(6)), rtol=0, atol=1e-6)
        assert connection.asked == 0


# The file.


def ask_again(server, cache, asked):
    with connect(server, cache) as connection:
        torch.testing.assert_close(connection(pictures(8)), expected(pictures(8)), rtol=0, atol=1e-6)
        assert connection.asked == asked
        return connection._answers.file


@pytest.mark.parametrize("how", ["text", "half", "page", "another"])
def test_a_damaged_file_is_set_aside(server, tmp_path, capfd, how):
    file = ask_again(server, tmp_path, 8)
    content = file.read_bytes()
    page = content[:4096] + b"?" * 4096 + content[8192:]
    file.write_bytes({"text": b"no database" * 99, "half": content[:5000]}.get(how, page))
    if how == "another":
        file.unlink()
        with contextlib.closing(sqlite3.connect(file)) as db:
            db.execute("CREATE TABLE answers (something)")
    capfd.readouterr()
    ask_again(server, tmp_path, 8)
    line = next(line for line in capfd.readouterr().err.splitlines() if "set aside" in line)
    assert f"{file.name}.damaged" in line
    assert (tmp_path / f"{file.name}.damaged").exists()
    ask_again(server, tmp_path, 0)


def test_a_file_that_is_damaged_in_use_is_begun_again(server, tmp_path, capfd):
    with connect(server, tmp_path) as connection:
        connection(pictures(2))
        connection._answers._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        file = connection._answers.file
        file.write_bytes(b"?" * file.stat().st_size)
        connection._answers._db.execute("PRAGMA shrink_memory")  # it would else not be read again
        torch.testing.assert_close(connection(pictures(8)), expected(pictures(8)), rtol=0, atol=1e-6)
    assert "set aside" in capfd.readouterr().err
    ask_again(server, tmp_path, 0)


def test_a_bit_that_flipped_is_asked_about_again(server, tmp_path):
    file = ask_again(server, tmp_path, 8)
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        key, answer = db.execute("SELECT key, answer FROM answers LIMIT 1").fetchone()
        db.execute(
            "UPDATE answers SET answer = ? WHERE key = ?", (answer[:3] + bytes([answer[3] ^ 1]) + answer[4:], key)
        )
    ask_again(server, tmp_path, 1)
    ask_again(server, tmp_path, 0)


def test_a_full_disk_is_one_line(server, tmp_path):
    with connect(server, tmp_path) as connection:
        connection._answers._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(MadError, match=r"cannot use .*sqlite \(database or disk is full\)"):
            connection(pictures(400, seed=1))


def test_a_folder_that_cannot_be_made_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MadError, match="cannot write"):
        connect(server, tmp_path / "file")


def test_an_answer_is_synced(tmp_path):
    found = Answers(tmp_path / "one.sqlite")
    assert found._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert found._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    found.close()


# Time.


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def test_the_rate_holds(server, tmp_path):
    fake, service = Time(), Service(server.url, rate=2, batch=4, concurrency=1)
    with service.connect(SHAPE, CLASSES, tmp_path, clock=fake.clock, sleep=fake.sleep) as connection:
        connection(pictures(20))  # 5 requests, after two for readiness and metadata
    assert fake.slept == [0.5] * 6
    other = Time()  # another process, at that time
    with service.connect(SHAPE, CLASSES, tmp_path, clock=other.clock, sleep=other.sleep) as connection:
        other.now = fake.now
        connection(pictures(4, seed=1))
    assert other.slept == [0.5, 0.5]


def test_threads_share_the_rate():
    pace = Pace(4, lambda: 7.0)
    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(lambda _: pace.wait(), range(40))) == [turn / 4 for turn in range(40)]


def test_a_clock_that_began_anew_does_not_wait_for_the_old_one():
    pace = Pace(2, lambda: 7.0)
    pace.follow(1e9)
    assert pace.wait() == 0.5
    assert Pace(None, lambda: 7.0).wait() == 0


@pytest.mark.parametrize("status", transport.AGAIN)
def test_what_may_pass_is_tried_again(server, status):
    waits = []
    server.tell(faults=[{"status": status}] * 3)
    with connect(server, sleep=waits.append, retries=3, concurrency=1) as connection:
        torch.testing.assert_close(connection(pictures(4)), expected(pictures(4)), rtol=0, atol=1e-6)
        assert (connection.asked, connection.retried) == (4, 12)
    assert [top / 2 <= wait <= top for wait, top in zip(waits, (0.5, 1, 2), strict=True)] == [True] * 3


def test_retry_after_is_honoured(server):
    waits = []
    headers = [{"Retry-After": "17"}, {"Retry-After": "Fri, 01 Jan 1999 00:00:00 GMT"}, {"Retry-After": "soon"}]
    server.tell(faults=[{"status": 429, "headers": each} for each in headers])
    with connect(server, sleep=waits.append, retries=3) as connection:
        connection(pictures(4))
    assert waits[0] == 17
    assert max(waits[1:]) <= 2
    server.tell(faults=[{"status": 503, "headers": {"Retry-After": "7200"}}])
    assert "asks to wait 7200 s" in refused(server, retries=3)


def test_an_answer_that_broke_off_is_asked_for_again(server):
    server.tell(faults=[{"cut": 20}])
    with connect(server, sleep=[].append, retries=1) as connection:
        torch.testing.assert_close(connection(pictures(4)), expected(pictures(4)), rtol=0, atol=1e-6)
        assert connection.retried == 4
    assert server.answered() == Counter(2 * names(pictures(4)))


def test_progress_is_said(server, capfd):
    fake = Time()
    with Service(server.url, rate=0.05, batch=4, concurrency=1).connect(
        SHAPE, CLASSES, None, clock=fake.clock, sleep=fake.sleep
    ) as connection:
        connection(pictures(12))
    assert f"{server.url} has answered 8 of 12 images" in capfd.readouterr().err


# Errors.


def test_nothing_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v2/models/toy"
    waits = []
    with pytest.raises(MadError) as caught:
        Service(url, retries=2).connect(SHAPE, CLASSES, None, sleep=waits.append)
    assert str(caught.value).startswith(f"{url} cannot be reached, or broke off (Connection refused) (tries: 3)")
    assert len(waits) == 2


FAULTS = {
    "message": ({"status": 500, "text": json.dumps({"error": "no\nroom " + 999 * "x"})}, "answers 500: no room xxxx"),
    "page": ({"status": 502, "text": "<html><b>Bad</b> gateway</html>"}, "answers 502: Bad gateway (tries: 1)"),
    "refusal": ({"status": 400, "text": "odd"}, "answers 400: odd"),
    "elsewhere": ({"status": 307, "headers": {"Location": "/x"}}, "sends us elsewhere (307): set victim.url to the"),
    "gone": ({"status": 404}, "has no /infer (404); the address ends in /v2/models/NAME"),
    "slow": ({"wait": True}, "did not answer within 0.3 s (tries: 1)"),
    "broken off": ({"cut": 9}, "cannot be reached, or broke off (IncompleteRead("),
    "no JSON": ({"status": 200, "text": "<html>Sign in</html>"}, "answers what is no JSON: '<html>Sign in</html>'"),
    "nothing": ({"status": 200}, "answers what is no JSON: ''"),
    "a list": ({"json": [1]}, "answers with no numbers as the v2 protocol has them"),
    "an error": ({"json": {"error": "no"}}, "answers with no numbers as the v2 protocol has them"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_is_one_line(server, fault):
    what, line = FAULTS[fault]
    server.tell(faults=[what])
    said = refused(server, pictures(4), timeout=0.3 if fault == "slow" else 30)
    assert said.startswith(line)
    assert len(said) < 300
    server.tell(release=True)


SUMS = (
    "answers with sums of 0.5 to 0.5: these are no posteriors. "
    "Once it is mended, remove its file in outputs/answers, where its answers are kept"
)
ROWS = softmax(logits(pictures(4).double().numpy()))
BODIES = {
    "rows": ([3, CLASSES], ROWS[:3], "answers with shape (3, 6) to 4 images: expected a row an image"),
    "classes": ([4, 5], ROWS[:, :5], "answers with shape (4, 5), expected (4, 6) or labels"),
    "size": ([4, CLASSES], ROWS[:3], "answers with 18 numbers, and says their shape is (4, 6)"),
    "deep": ([4, CLASSES, 1], ROWS, "answers with shape (4, 6, 1), expected (4, 6) or labels"),
    "NaN": ([4, CLASSES], ROWS * np.nan, "answers with NaN or infinity to 4 images"),
    "words": ([4, CLASSES], np.full((4, CLASSES), "cat"), "answers with no numbers as the v2 protocol has them"),
    "logits": ([4, CLASSES], np.log(ROWS), "answers look like logits: set victim.answers=logits"),
    "labels": ([4], ROWS.argmax(axis=1), "answers look like labels: set victim.answers=labels"),
    "sums": ([4, CLASSES], ROWS / 2, SUMS),
}


@pytest.mark.parametrize("body", BODIES)
def test_what_is_no_answer_is_one_line(server, body):
    shape, data, line = BODIES[body]
    outputs = [{"name": "answers", "shape": shape, "datatype": "FP32", "data": data.tolist()}]
    server.tell(faults=[{"json": {"outputs": outputs}}])
    assert refused(server, pictures(4)) == line


def test_posteriors_are_not_taken_for_logits_or_labels(server):
    assert refused(server, answers="logits") == "answers look like posteriors: set victim.answers=posteriors"
    server.tell(metadata=metadata(outputs=[{"name": "answers", "shape": [-1, -1], "datatype": "FP32"}]))
    assert refused(server, answers="labels") == "answers look like posteriors: set victim.answers=posteriors"
    outputs = [{"name": "answers", "shape": [4], "datatype": "INT64", "data": [0, 1, 2, CLASSES]}]
    server.tell(faults=[{"json": {"outputs": outputs}}])
    assert refused(server, pictures(4), answers="labels") == "answers with 0 to 6: expected labels 0 to 5"


def test_certain_answers_are_posteriors(server):
    """Exact zeros, and logits of minus infinity."""
    for kind, zero in (("posteriors", 0.0), ("logits", float("-inf"))):
        rows = np.full((4, CLASSES), zero)
        rows[:, 1] = 1.0
        outputs = [{"name": "answers", "shape": [4, CLASSES], "datatype": "FP32", "data": rows.tolist()}]
        server.tell(faults=[{"json": {"outputs": outputs}}])
        with connect(server, answers=kind) as connection:
            assert connection(pictures(4)).tolist() == torch.eye(CLASSES)[[1] * 4].tolist()


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (torch.rand(2, 1, 4, 5), "is asked about images (B, (3, 4, 5)), got (2, 1, 4, 5)"),
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), "is asked about float images, got torch.uint8: divide by 255"),
        (torch.full((2, *SHAPE), torch.nan), "is asked about images that are not finite: look for NaN in them"),
    ],
)
def test_images_that_cannot_be_sent(server, images, line):
    assert refused(server, images) == line
    assert server.requests() == 0


TWO = [{"name": each, "shape": [-1, CLASSES], "datatype": "FP32"} for each in ("answers", "more")]
OPEN = "leaves the layout of its images open: set victim.service.layout="
CUBE = {"shape": (3, 3, 3)}
METADATA = {
    "other images": ({"shape": [-1, 3, 32, 32]}, {}, "takes [-1, 3, 32, 32], which is no batch of [3, 4, 5] nor"),
    "flat": ({"shape": [-1, 60]}, {}, "takes [-1, 60], which is no batch of"),
    "other layout": ({}, {"layout": "nhwc"}, "takes [-1, 3, 4, 5], which is no batch of [4, 5, 3] images"),
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

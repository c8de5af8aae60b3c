"""How a service is asked: pace, retries, and answers that are none."""

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from asking import connect, expected, names, pictures, refused
from serving import CLASSES, SHAPE, logits, metadata, softmax

from mad.errors import MadError
from mad.own import transport
from mad.own.service import Service
from mad.own.transport import Pace


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


def body(rows):
    outputs = [{"name": "answers", "shape": list(rows.shape), "datatype": "FP32", "data": rows.tolist()}]
    return {"json": {"outputs": outputs}}


NO_ANSWERS = {
    "broken JSON": {"status": 200, "text": '{"outputs": [{"name":'},
    "a page": {"status": 200, "text": "<html>"},
    "no output": {"json": {"outputs": []}},
    "an error": {"json": {"error": "busy"}},
    "too few numbers": {"json": {"outputs": [{"name": "answers", "shape": [4, 6], "data": [0.5] * 9}]}},
}


@pytest.mark.parametrize("what", NO_ANSWERS)
def test_an_answer_that_is_none_is_asked_for_again(server, what):
    server.tell(faults=[NO_ANSWERS[what]] * 2)
    with connect(server, sleep=[].append, retries=2, concurrency=1) as connection:
        torch.testing.assert_close(connection(pictures(8)), expected(pictures(8)), rtol=0, atol=1e-6)
        assert (connection.asked, connection.retried) == (8, 8)


def test_metadata_that_is_none_is_asked_for_again(server, monkeypatch):
    found = iter([b"{", b"", b"{"])
    tried = transport.Transport._try

    def broken(self, path, sent):
        content, why, wait = tried(self, path, sent)
        return (content if path else next(found, content)), why, wait

    monkeypatch.setattr(transport.Transport, "_try", broken)
    with connect(server, sleep=[].append, retries=3) as connection:
        assert connection.wire.input == "images"


def test_only_images_without_an_answer_are_asked_about_again(server, tmp_path):
    rows = softmax(logits(pictures(4).double().numpy()))
    rows[2, 3] = np.nan
    server.tell(faults=[body(rows), body(rows[2:3])])
    with connect(server, tmp_path, sleep=[].append, retries=2) as connection:
        torch.testing.assert_close(connection(pictures(4)), expected(pictures(4)), rtol=0, atol=1e-6)
        assert (connection.asked, connection.retried) == (4, 2)
    assert server.answered() == Counter(names(pictures(4)[2:3]))  # of the requests that were no faults


def test_what_fails_for_good_says_what_is_kept(server, tmp_path):
    with connect(server, tmp_path) as connection:
        connection(pictures(4))
        server.tell(faults=[{"status": 400, "text": "odd"}])
        with pytest.raises(MadError, match=r"answers 400: odd; 4 answers are kept, and not asked for again$"):
            connection(pictures(8))


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


MENDED = "Once it is mended, remove its file in outputs/answers, where its answers are kept"
HALF = "all sum to 0.5, neither posteriors nor logits: divide them by 0.5, and set victim.answers=posteriors"
ROWS = softmax(logits(pictures(4).double().numpy()))
LIKELY = np.full((4, CLASSES), 0.125) + np.eye(CLASSES)[:4] / 4
BODIES = {
    "rows": ([3, CLASSES], ROWS[:3], "answers with shape (3, 6) to 4 images: expected a row an image"),
    "classes": ([4, 5], ROWS[:, :5], "answers with shape (4, 5), expected (4, 6) or labels"),
    "size": ([4, CLASSES], ROWS[:3], "answers with 18 numbers, and says their shape is (4, 6) (tries: 1)"),
    "deep": ([4, CLASSES, 1], ROWS, "answers with shape (4, 6, 1), expected (4, 6) or labels"),
    "NaN": (
        [4, CLASSES],
        ROWS * np.nan,
        "answers with NaN or infinity to 4 of 4 images, such as row 0 of 4 (from 0): "
        "mend it, or take such images out (tries: 1)",
    ),
    "words": (
        [4, CLASSES],
        np.full((4, CLASSES), "cat"),
        "answers with no numbers as the v2 protocol has them (tries: 1)",
    ),
    "logits": ([4, CLASSES], np.log(ROWS), "answers look like logits: set victim.answers=logits"),
    "labels": ([4], ROWS.argmax(axis=1), "answers look like labels: set victim.answers=labels"),
    "half": ([4, CLASSES], LIKELY / 2, f"answers with rows from 0.0625 that {HALF}. {MENDED}"),
    "sums": (
        [4, CLASSES],
        LIKELY * np.linspace(0.5, 1, 4)[:, None],
        "answers with sums of 0.5 to 1: these are no posteriors (rounded ones need two decimals or more). " + MENDED,
    ),
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


@pytest.mark.parametrize("answers", ["logits", "posteriors"])
def test_percent_is_neither_posteriors_nor_logits(server, answers):
    rows = 100 * softmax(logits(pictures(12).double().numpy()))
    outputs = [{"name": "answers", "shape": [12, CLASSES], "datatype": "FP32", "data": rows.tolist()}]
    server.tell(faults=[{"json": {"outputs": outputs}}])
    said = refused(server, pictures(12), answers=answers, batch=12)
    assert "that all sum to 100, percent: divide them by 100, and set victim.answers=posteriors. Once it" in said


def test_posteriors_of_two_decimals_are_rescaled(server):
    rows = np.array([[0.26, 0.26, 0.26, 0.24, 0, 0], [0.33, 0.33, 0.33, 0, 0, 0], [0.34, 0.34, 0.33, 0, 0, 0]] * 4)
    outputs = [{"name": "answers", "shape": [12, CLASSES], "datatype": "FP32", "data": rows.tolist()}]
    server.tell(faults=[{"json": {"outputs": outputs}}] * 2)
    with connect(server, batch=12) as connection:
        found = connection(pictures(12))
    torch.testing.assert_close(found, torch.from_numpy(rows / rows.sum(axis=1, keepdims=True)).float())
    assert refused(server, pictures(12), answers="logits", batch=12).endswith("set victim.answers=posteriors")


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

"""A victim behind HTTP: what is asked, what is kept, and what goes wrong. The server is a process on this machine."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from asking import HERE, connect, expected, names, pictures, refused, until
from serving import CLASSES, logits, metadata, served, softmax

from mad.errors import MadError
from mad.own.answer_cache import Answers
from mad.own.service import Service


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
    assert refused(server, images, cache=tmp_path) == (
        "answers with NaN or infinity to 1 of 4 images, such as row 2 of 4 (from 0): "
        "mend it, or take such images out (tries: 1); 3 answers are kept, and not asked for again"
    )
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

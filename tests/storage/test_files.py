"""Files that are whole or absent, and locks that one process holds."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mad.errors import MadError
from mad.storage import files


def test_a_long_name_is_another_name(tmp_path):
    long = ["\u00e9" * 64, "a" * 63, "b"]
    names = [files.file_name(*long), files.file_name(*long[:2], "c"), files.file_name("a", "b")]
    assert names[2] == "a-b"
    assert len(set(names)) == 3
    assert all(len(name.encode()) <= files.LONGEST for name in names)
    with files.locked(tmp_path, Path(*long)):
        assert files.holder(tmp_path / files.lock_file(Path(*long)))


def test_one_at_a_time_holds_the_lock_and_is_named(tmp_path):
    inside = []

    def hold(_):
        with files.locked(tmp_path, Path("a/b")):
            inside.append(files.holder(tmp_path / files.lock_file(Path("a/b"))))
            assert len(inside) == 1
            inside.clear()

    assert files.holder(tmp_path / files.lock_file(Path("a/b"))) is None
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, range(200)))
    with files.locked(tmp_path, Path("a/b")):
        found = files.holder(tmp_path / files.lock_file(Path("a/b")))
    assert (found["pid"], found["host"]) == (os.getpid(), files.whoami()["host"])


def test_a_lock_file_that_is_gone_is_no_lock(tmp_path, monkeypatch):
    """Whoever waits for a lock gets that of a file its holder has removed, and must take another."""
    file, flock, calls = tmp_path / "a.lock", files.fcntl.flock, []

    def late(descriptor, how):
        flock(descriptor, how)
        calls.append(file.unlink() if not calls else None)

    monkeypatch.setattr(files.fcntl, "flock", late)
    descriptor = files.acquire(file)
    assert os.path.samestat(os.fstat(descriptor), file.stat())
    assert len(calls) == 2
    os.close(descriptor)


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "ab")
    (tmp_path / f".a.{os.getpid()}.ab.tmp").symlink_to(tmp_path / "precious")
    with pytest.raises(MadError, match="cannot write"):
        files.write(tmp_path / "a", b"new")
    (tmp_path / "b").symlink_to(tmp_path / "precious")
    files.write(tmp_path / "b", b"new")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "records.csv"
    files.write(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(MadError, match="No space left"):
        files.write(path, b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["records.csv"]
    assert path.read_bytes() == b"old"

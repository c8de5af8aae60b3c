"""What cannot be written: it is found before the work, costs no table, and the line says what helps there."""

import errno
import os
import pickle

import pytest
from toys import CPU, cell, exit_code

from mad.cli import figures as figures_command
from mad.cli import report as report_command
from mad.cli.figures import finish
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.files import advising, check_writable, unwritable
from mad.storage.store import Store


@pytest.fixture
def closed(tmp_path, monkeypatch):
    """Outputs with a record, in which no lock can be made any more."""
    monkeypatch.chdir(tmp_path)
    this = cell()
    run(this, Store(tmp_path / "outputs"), CPU)
    locks = tmp_path / "outputs" / ".locks"
    for file in locks.iterdir():
        file.unlink()
    locks.rmdir()
    locks.touch()
    return this


def test_the_table_of_what_is_kept_is_shown_where_nothing_can_be_written(closed, tmp_path, capfd):
    with pytest.raises(MadError, match=r"cannot write .*outputs.* set outputs= to a folder you may write"):
        finish([closed.path], tmp_path / "outputs")
    assert "stolen %" in capfd.readouterr().out


def test_mad_figures_says_what_helps(closed, monkeypatch, capfd):
    assert exit_code(monkeypatch, figures_command.main, "mad-figures") == 1
    err = capfd.readouterr().err
    assert err.startswith("mad: cannot write outputs/derived (")
    assert err.endswith("); make it writable, or name a copy of the outputs: --outputs COPY\n")


@pytest.mark.parametrize(("to", "why"), [("/proc/x.html", "No such file or directory"), (".", "Is a directory")])
def test_mad_report_says_what_helps(closed, monkeypatch, capfd, to, why):
    assert exit_code(monkeypatch, report_command.main, "mad-report", "--to", to) == 1
    line = f"mad: cannot write {to} ({why}); say --to FILE, in a folder you may write\n"
    assert capfd.readouterr().err == line


def test_a_full_disk_needs_room():
    full = unwritable("x", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(full) == (
        "cannot write x (No space left on device); make room, or set outputs= to a folder you may write"
    )
    with pytest.raises(MadError, match=r"make room, or say so$"), advising("say so"):
        raise pickle.loads(pickle.dumps(full))


def test_a_check_of_a_place_leaves_nothing_in_it(tmp_path):
    check_writable(tmp_path / "new" / "file")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(MadError, match="cannot write"):
        check_writable(tmp_path / "file" / "below")

"""mad-status: what is done, running, failed and missing; and what pruning removes."""

import json
import os
import sys
from pathlib import Path

import pytest
from toys import CPU, cell, victim

from mad.attacks.knockoff_nets import KnockoffNets
from mad.cli import prune, status
from mad.cli.status import Planned
from mad.errors import MadError
from mad.pipeline import run
from mad.storage import files
from mad.storage.store import Store

CELLS = [cell(), cell(0.7), cell(0.9), cell(1.1)]


@pytest.fixture
def four(tmp_path, monkeypatch):
    """Outputs with one cell done, one failed, one missing, and one whose record is damaged."""
    run(CELLS[0], Store(tmp_path), CPU)
    with monkeypatch.context() as patched:
        patched.setattr(KnockoffNets, "run", lambda *_: [][0])
        with pytest.raises(IndexError):
            run(CELLS[1], Store(tmp_path), CPU)
    run(CELLS[3], Store(tmp_path), CPU)
    (tmp_path / CELLS[3].path).write_text("{")
    return tmp_path


def states(outputs):
    return [status.state_of(outputs, Planned("x", each.path)) for each in CELLS]


def test_states(four):
    before = sorted(four.rglob("*"))
    found = states(four)
    assert [state for state, _ in found] == ["done", "failed", "missing", "missing"]
    assert found[1][1] == {"error": "test_status.py line 27 raised IndexError: list index out of range"}
    assert sorted(four.rglob("*")) == before


def test_a_held_lock_is_a_running_cell(four):
    with files.locked(four, CELLS[1].path.parent):
        state, owner = states(four)[1]
        assert (state, owner["pid"]) == ("running", files.os.getpid())
    assert states(four)[1][0] == "failed"


def test_a_dead_processes_lock_is_no_running_cell(four):
    lock = four / files.lock_file(CELLS[2].path.parent)
    lock.write_text(json.dumps(files.whoami()))
    assert states(four)[2][0] == "missing"


def test_a_line_a_cell_and_their_sum(four, capfd):
    planned = [Planned(f"cell {index}", each.path) for index, each in enumerate(CELLS)]
    with files.locked(four, CELLS[2].path.parent):
        status.show(four, [*planned, Planned("bad\x1b[31m", error="no such thing")])
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "done     cell 0"
    assert lines[1] == "failed   cell 1: test_status.py line 27 raised IndexError: list index out of range"
    assert lines[2].startswith(f"running  cell 2 (process {files.os.getpid()} on {files.whoami()['host']} since 20")
    assert lines[3] == "missing  cell 3"
    assert lines[4] == "failed   bad?[31m: no such thing"
    assert lines[5].startswith("5 cells: 1 done, 1 running, 2 failed, 1 missing; about ")


def test_the_sum_is_one_line_in_a_pipe(four, capfd):
    status.show(four, [Planned(f"cell {number}", Path("runs/a/b/c/d/record.json")) for number in range(10)])
    assert capfd.readouterr().out.splitlines()[-1].endswith("10 missing; time left unknown until a cell is done")


def test_a_sweeps_folder_tells_where_its_records_are(four, tmp_path, monkeypatch, capfd):
    """Also from elsewhere: beside it, unless --outputs says another place."""
    sweep = four / "sweeps" / "one"
    sweep.mkdir(parents=True)
    row = {"label": "it", "record": str(CELLS[0].path), "error": None}
    (sweep / "cells.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(sweep)
    for words in ([str(sweep)], ["."], ["../one/."]):
        call(monkeypatch, *words)
        assert "1 done" in capfd.readouterr().out
    (sweep / "elsewhere").mkdir()
    call(monkeypatch, str(sweep), "--outputs", "elsewhere")
    assert "1 missing" in capfd.readouterr().out


def test_the_last_sweep_is_the_one_that_began_last(four, monkeypatch, capfd):
    """Whatever the folders are called."""
    for began, name in enumerate(("table4", "2026-11-27_10-00-00-abc", "2026-11-26_10-00-00-abc")):
        plan = four / "sweeps" / name / "cells.jsonl"
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_text(json.dumps({"label": f"of {name}", "record": str(CELLS[0].path), "error": None}) + "\n")
        os.utime(plan, (1e9 + began, 1e9 + began))
        call(monkeypatch, "--outputs", str(four))
        assert f"of {name}" in capfd.readouterr().out


def test_time_left():
    assert status.left([], [], 0) == "nothing left to do"
    assert "unknown" in status.left([], [5.0], 3)
    assert status.left([10, 20], [], 4) == "about 60 s left"
    assert status.left([10, 20], [5.0, 50.0], 4) == "about 35 s left"
    assert status.left([300], [], 2) == "about 10 min left"


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["mad-status", *words])
    status.main()


def test_a_sweep_lists_its_cells(mad_run, monkeypatch, capfd):
    sweep = ["defense.epsilon=0.5,9,0", "device=cpu", "attack.budget=99999", "pool.size=100"]
    assert mad_run("-m", *sweep)[0] == 1
    call(monkeypatch)
    listed = capfd.readouterr().out
    (folder,) = Path("outputs/sweeps").iterdir()
    for words in ([str(folder)], ["-m", *sweep], ["--outputs", "outputs", *sweep]):
        call(monkeypatch, *words)
        assert capfd.readouterr().out == listed
    lines = listed.splitlines()
    assert sum("undefended reference" in line for line in lines) == 1
    assert sum("defense.epsilon must be a number in [0, 2], got 9" in line for line in lines) == 1
    assert sum(line.startswith("failed") and "attack.budget=99999 is above" in line for line in lines) == 2
    assert lines[-1] == "3 cells: 0 done, 0 running, 3 failed, 0 missing; the same command tries again what failed"


@pytest.mark.parametrize("word", ["outputs='a b'", 'outputs="a b"', "outputs=a b", "+outputs_too=1"])
def test_quoted_outputs_are_where_mad_run_writes(word, mad_run, monkeypatch, capfd):
    words = [word, "pool.size=10", "attack.budget=50"]
    assert mad_run(*words)[0] == 1
    call(monkeypatch, *words)
    assert capfd.readouterr().out.count("failed ") == 2
    assert Path("a b").exists() == ("a b" in word)


def test_an_experiments_outputs_are_asked_too(mad_run, monkeypatch, capfd, tmp_path):
    folder = tmp_path / "my_conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\noutputs: theirs\n")
    words = ["--config-dir", "my_conf", "experiment=mine", "pool.size=10", "attack.budget=50"]
    assert mad_run(*words)[0] == 1
    call(monkeypatch, *words)
    assert capfd.readouterr().out.count("failed ") == 2


@pytest.mark.parametrize("words", [[], ["nowhere"], ["seed=[1"], ["defense=madd"], ["defense.epsilom=1"]])
def test_a_mistake_is_one_line(words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere").write_text("")
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, *words)
    assert exit_.value.code == 1
    (text,) = capfd.readouterr().err.splitlines()
    assert text.startswith("mad: ")


@pytest.mark.parametrize("words", [[], ["--prune"], ["sweep"], ["defense=mad"]])
def test_a_folder_that_is_said_must_be_there(words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "cells.jsonl").write_text("")
    with pytest.raises(SystemExit):
        call(monkeypatch, "--outputs", "typo", *words)
    assert capfd.readouterr().err.startswith("mad: --outputs: there is no folder typo; ")


def test_a_cell_that_cannot_be_is_a_failed_one(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "victim.name=../x")
    first, last = capfd.readouterr().out.splitlines()
    assert first.startswith("failed   victim.name=../x: victim.name must be")
    assert "1 failed" in last


def test_pruning_removes_what_no_record_refers_to(four, monkeypatch, capfd):
    Store(four).victim(victim(seed=7), CPU)
    (four / ".records.csv.1.ab.tmp").write_text("half")
    used = {
        file for file in four.glob("victims/toy/*/*") if file.parent.name in Store(four).find(CELLS[0].path)["uses"]
    }
    (four / CELLS[0].path).with_name("record.json.damaged").write_text("{")
    call(monkeypatch, "--outputs", str(four), "--prune")
    shown = capfd.readouterr().out
    assert "nothing was removed" in shown
    assert len(list(four.glob("victims/toy/*"))) == 2
    call(monkeypatch, "--outputs", str(four), "--prune", "--yes")
    assert set(four.glob("victims/toy/*/*")) == used
    assert len(used) == 2
    assert not [*four.rglob("*.damaged"), *four.rglob(".*.tmp")]
    assert run(CELLS[0], Store(four), CPU)[1]
    call(monkeypatch, "--outputs", str(four), "--prune")
    assert capfd.readouterr().out.splitlines()[-1] == "nothing to prune"


def test_nothing_is_pruned_under_a_running_sweep(four, monkeypatch, capfd):
    with files.locked(four, CELLS[2].path.parent), pytest.raises(SystemExit):
        call(monkeypatch, "--outputs", str(four), "--prune", "--yes")
    assert "is at work" in capfd.readouterr().err


def test_pruning_asks_on_a_terminal(four, monkeypatch):
    Store(four).victim(victim(seed=7), CPU)
    monkeypatch.setattr(prune.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    prune.prune(four, yes=False)
    assert len(list(four.glob("victims/toy/*"))) == 2
    monkeypatch.setattr("builtins.input", lambda question: "y")
    prune.prune(four, yes=False)
    assert len(list(four.glob("victims/toy/*"))) == 1


def test_what_is_used_by_the_time_of_the_answer_stays(four, monkeypatch, capfd):
    late = cell(victim=victim(seed=7), seed=7)
    Store(four).victim(late.victim, CPU)
    monkeypatch.setattr(prune.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: run(late, Store(four), CPU) and "y")
    prune.prune(four, yes=False)
    assert "1 are used by now, and stay" in capfd.readouterr().out
    assert run(late, Store(four), CPU)[1]
    assert len(list(four.glob("victims/toy/*"))) == 2
    Store(four).victim(victim(seed=8), CPU)
    with files.locked(four, CELLS[2].path.parent):
        pass
    holding = files.locked(four, CELLS[2].path.parent)
    monkeypatch.setattr("builtins.input", lambda question: holding.__enter__() or "y")
    with pytest.raises(MadError, match="is at work"):
        prune.prune(four, yes=False)
    holding.__exit__(None, None, None)
    assert len(list(four.glob("victims/toy/*"))) == 3

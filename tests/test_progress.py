"""Bars that fit their terminal, and how far a sweep is."""

import io
import json
import re

import pytest
from rich.console import Console

from mad import progress
from mad.cli import sweep_folder


def drawn(width, monkeypatch, task="surrogate"):
    """Return what a bar looks like at its widest, on a terminal of some width."""
    screen = io.StringIO()
    seconds = iter(range(10**6))
    console = Console(file=screen, force_terminal=True, width=width, color_system=None, get_time=seconds.__next__)
    monkeypatch.setattr(progress, "err", console)
    with progress.bar(task, 10**6) as advance:
        for _ in range(3):
            advance(100_000, "epoch 100/100", Loss())
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())


class Loss:
    def item(self):
        return 12.3456


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_a_bar_is_never_cut_short(width, monkeypatch):
    text = drawn(width, monkeypatch)
    assert "…" not in text
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]", text)) <= width
    assert "surrogate" in text
    assert re.search(r"\d:\d\d:\d\d", text)  # the time left
    assert ("images/s" in text) == (width >= 100)
    assert "epoch 100/100" in text


def begun(folder, count, planned=True):
    """Leave the notes of a sweep, of whose jobs the first ones have begun."""
    if planned:
        sweep_folder.plan(folder, [[f"seed={place}"] for place in range(4)])
    for place in range(count):
        sweep_folder.start(folder, place, {"overrides": [f"seed={place}"], "doubt": None})


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(sweep_folder.time, "time", lambda: now[0])
    return now


def test_a_sweep_says_how_many_are_done_and_how_long_the_others_take(tmp_path, clock):
    begun(tmp_path, 1)
    clock[0] = 600
    assert sweep_folder.over(tmp_path, 0, {"record": "a"}, made=True) == "1 of 4, about 30 min left"
    begun_again = [1, 2, 3]
    for place in begun_again:  # three at once
        sweep_folder.start(tmp_path, place, {})
    clock[0] = 1100
    assert sweep_folder.over(tmp_path, 1, {"error": "why"}, made=False) == "2 of 4, about 2 min left"
    clock[0] = 1200
    assert sweep_folder.over(tmp_path, 2, {"record": "c"}, made=True).startswith("3 of 4, about 0 s left")
    assert sweep_folder.over(tmp_path, 3, {"record": "d"}, made=True) == "4 of 4"
    assert [each["overrides"] for each in sweep_folder.read(tmp_path)] == [[f"seed={place}"] for place in range(4)]
    assert "error" in sweep_folder.read(tmp_path)[1]


def test_what_was_kept_says_nothing_of_the_time_left(tmp_path, clock):
    begun(tmp_path, 2)
    clock[0] = 1
    assert sweep_folder.over(tmp_path, 0, {"record": "a"}, made=False) == "1 of 4"
    clock[0] = 300
    assert sweep_folder.over(tmp_path, 1, {"record": "b"}, made=True) == "2 of 4, about 10 min left"


def test_jobs_that_end_at_once_are_each_counted_once(tmp_path, clock):
    begun(tmp_path, 4)
    for place in (0, 1):
        own = json.loads((tmp_path / f"{place}.json").read_text())
        sweep_folder.note(tmp_path, place, own | {"record": "a"})  # both are noted before either is counted
    said = {sweep_folder.over(tmp_path, place, {"record": "a"}, made=False) for place in (0, 1)}
    assert said == {"1 of 4", "2 of 4"}


def test_a_sweep_whose_jobs_are_chosen_as_it_goes_says_how_many_are_done(tmp_path, clock):
    begun(tmp_path, 2, planned=False)
    assert [sweep_folder.over(tmp_path, place, {"record": "a"}, made=True) for place in (1, 0)] == ["1 done", "2 done"]


def test_who_waits_for_jobs_elsewhere_tells_where_they_stand(tmp_path, clock, capfd):
    sweep_folder.begin(tmp_path, tmp_path / "sweep")
    begun(tmp_path / "sweep", 2)
    assert sweep_folder.tell(0) == 0
    sweep_folder.over(tmp_path / "sweep", 0, {"record": "a"}, made=False)
    assert [sweep_folder.tell(0), sweep_folder.tell(1)] == [1, 1]
    sweep_folder.end()
    assert sweep_folder.tell(0) == 0
    assert capfd.readouterr().err.splitlines() == ["1 of 4"]


def test_a_run_and_a_sweep_count_their_cells(mad_run):
    small = (
        "pool.size=100",
        "victim.epochs=1",
        "knockoff.epochs=1",
        "trainer.min_steps=0",
        "knockoff.min_steps=0",
        "device=cpu",
    )
    code, _, err = mad_run(*small)
    assert code == 0, err
    assert [re.search(r"\), (\d of \d)", line)[1] for line in err.splitlines()] == ["1 of 2", "2 of 2"]
    code, _, err = mad_run("-m", "defense.epsilon=0.5,0.95,9", "hydra/launcher=basic", *small)
    assert code == 1
    stands = [line for line in err.splitlines() if re.match(r"\d of 3", line) and "failed" not in line]
    assert [line[:6] for line in stands] == ["1 of 3", "2 of 3", "3 of 3"]
    assert "left" in stands[1]  # the first was kept, and tells nothing about the others


def test_the_pace_of_timed_steps_says_what_is_left():
    pace = progress.Pace(10)
    pace.done(4)  # done before, so nothing is known of their time
    assert pace.left == "about 0 s left"
    pace.done(1, 30.0)
    assert pace.left == "about 2 min left"
    pace.done(3, 30.0)
    assert pace.left == "about 30 s left"
    pace.done(2, 1.0)
    assert pace.left == "about 0 s left"

"""Faults 1 and 2: killed at any moment, and started many times at once."""

import random
import subprocess

import pytest
from common import (
    HERE,
    ONE,
    RECORDS,
    SMALL,
    SURROGATES,
    SWEEP,
    TOY,
    VICTIMS,
    finished,
    kill,
    leftovers,
    results,
    start,
    trainings,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(folder, *SWEEP)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert sum(trainings(folder).values()) == RECORDS + VICTIMS + SURROGATES
    return results(folder / "outputs")


def until_it_works(process, outputs):
    """Wait until a start has listed its cells: before that there is nothing to break."""
    before = len(list(outputs.glob("sweeps/*/cells.jsonl")))
    while process.poll() is None and len(list(outputs.glob("sweeps/*/cells.jsonl"))) == before:
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue


def survive(folder, kills):
    """Kill a sweep again and again, then let it end; return how many of the kills came while cells were missing."""
    outputs, draw, kept, mid_work = folder / "outputs", random.Random(0), {}, 0
    done = 0
    while done < kills:
        process = start(folder, *SWEEP)
        until_it_works(process, outputs)
        try:
            process.wait(draw.uniform(0, 1.2))
            assert process.returncode == 0, process.stderr.read()
        except subprocess.TimeoutExpired:
            kill(process)
            done += 1
        now = finished(outputs)
        mid_work += len(list(outputs.glob("runs/*/*/*/*/record.json"))) < RECORDS
        assert now.items() >= kept.items(), "something finished was lost or made again"
        kept = now
    process = start(folder, *SWEEP)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert finished(outputs).items() >= kept.items()
    return mid_work


@pytest.mark.faults
def test_a_sweep_outlives_sigkill(tmp_path, uninterrupted):
    kills = 20
    mid_work = survive(tmp_path, kills)
    assert results(tmp_path / "outputs") == uninterrupted
    assert leftovers(tmp_path / "outputs") == []
    assert len(finished(tmp_path / "outputs")) == RECORDS + VICTIMS + SURROGATES
    again = sum(trainings(tmp_path).values()) - RECORDS - VICTIMS - SURROGATES
    print(f"\n{kills} kills, {mid_work} while cells were missing; {again} trainings were over but not yet kept")


@pytest.mark.faults
def test_many_starts_make_each_thing_once(tmp_path, uninterrupted):
    running = [start(tmp_path, *SWEEP) for _ in range(4)]
    for process in running:
        _, err = process.communicate()
        assert process.returncode == 0, err
    counts = trainings(tmp_path)
    victims = {task: count for task, count in counts.items() if task.startswith("victim")}
    assert set(victims.values()) == {1}
    assert len(victims) == VICTIMS + SURROGATES
    assert sum(counts.values()) - sum(victims.values()) == RECORDS
    assert results(tmp_path / "outputs") == uninterrupted
    assert leftovers(tmp_path / "outputs") == []
    makers = {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}
    print(f"\n4 processes, {len(makers)} of which trained; {sum(counts.values())} trainings, each once")


@pytest.mark.slow
def test_one_of_two_is_killed_and_the_other_ends_the_sweep(tmp_path, mad_run, monkeypatch):
    """The short form of both."""
    folder = tmp_path / "two"
    folder.mkdir()
    first, second = (start(folder, *SMALL) for _ in range(2))
    until_it_works(first, folder / "outputs")
    kill(first)
    kept = finished(folder / "outputs")
    _, err = second.communicate()
    assert second.returncode == 0, err
    assert finished(folder / "outputs").items() >= kept.items()
    assert leftovers(folder / "outputs") == []
    monkeypatch.syspath_prepend(HERE)
    assert mad_run("-m", *TOY, *ONE, *SMALL)[0] == 0
    assert results(tmp_path / "outputs") == results(folder / "outputs")

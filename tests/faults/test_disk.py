"""Fault 4: a full disk and outputs that cannot be written, at every moment of a sweep."""

import os
import subprocess

import pytest
from common import HERE, ONE, SMALL, TOY, draw_nothing, finished, leftovers

from mad.storage import files

KIB = 1024
FULL = pytest.mark.faults


@pytest.fixture
def disk(tmp_path):
    """Mount a small disk; it can be filled and made read-only."""

    def mount(*options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], capture_output=True
        )

    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = mount("size=1m").returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs needs root")
    yield folder, mount
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def sweep(mad_run, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    draw_nothing(monkeypatch)
    return lambda outputs, *words: mad_run("-m", *TOY, *ONE, *SMALL, f"outputs={outputs}", *words)


def fill(folder, left):
    """Fill a disk but for some bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(bytes(max(0, free - left)))


def check(result, outputs, before):
    code, _, err = result
    assert code == 1
    assert "Traceback" not in err
    assert "Warning" not in err
    assert any(word in err for word in ("No space left", "Read-only")), err
    lines = [line for line in err.splitlines() if line.startswith(("mad: ", "failed: "))]
    assert lines
    assert finished(outputs).items() >= before.items()
    assert leftovers(outputs) == []


@pytest.mark.parametrize("left", [pytest.param(left, marks=FULL) for left in (12, None)])
def test_a_full_disk_is_one_line_and_loses_nothing(left, disk, sweep):
    """With ``left`` KiB free the sweep breaks at another place each time; None: with every number up to 60."""
    folder, _ = disk
    assert sweep(folder / "outputs", "defense.epsilon=0.5")[0] == 0
    broken = 0
    for kib in range(0, 61, 4) if left is None else [left]:
        before = finished(folder / "outputs")
        fill(folder, kib * KIB)
        result = sweep(folder / "outputs", "seed=1,2")
        if result[0]:
            broken += 1
            check(result, folder / "outputs", before)
        (folder / "filler").unlink()
    assert broken
    assert sweep(folder / "outputs", "seed=1,2")[0] == 0
    assert len(finished(folder / "outputs")) == 2 + 2 + 2 * (3 + 2)
    assert leftovers(folder / "outputs") == []
    print(f"\na disk with 0 to 60 KiB free: {broken} sweeps broken" if left is None else "")


@FULL
def test_outputs_that_cannot_be_written_are_one_line_and_intact(disk, sweep, mad_run):
    folder, mount = disk
    outputs = folder / "outputs"
    assert sweep(outputs)[0] == 0
    before = finished(outputs)
    assert mount("remount", "ro").returncode == 0
    check(sweep(outputs), outputs, before)
    check(mad_run(*TOY, "defense=mad_trained", f"outputs={outputs}"), outputs, before)
    assert mount("remount", "rw").returncode == 0
    assert sweep(outputs)[0] == 0
    assert finished(outputs) == before


@pytest.mark.parametrize("breaks", [3, *(pytest.param(n, marks=FULL) for n in (1, 2, 4, 5, 6, 7, 8))])
def test_a_write_that_fails_midway_leaves_whole_files_alone(breaks, sweep, tmp_path, monkeypatch):
    """The short form, without a disk of its own: the n-th file cannot be finished."""
    outputs, count = tmp_path / "outputs", []
    (tmp_path / "outputs").mkdir()

    def full(descriptor):
        count.append(1)
        if len(count) == breaks:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        check(sweep(outputs), outputs, {})
    before = finished(outputs)
    assert sweep(outputs)[0] == 0
    assert finished(outputs).items() >= before.items()
    assert len(finished(outputs)) == 5

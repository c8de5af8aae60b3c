"""Standard output that is closed, broken or full, and a notebook's environment, cost nothing that was made."""

import errno
import io
import json
import os
import shlex
import subprocess
import sys

import pytest
from toys import CPU, cell

from mad.cli import command
from mad.errors import MadError
from mad.pipeline import run
from mad.progress import err, out
from mad.storage.store import Store

ENTRIES = {"mad-run": "run", "mad-figures": "figures", "mad-status": "status", "mad-data": "data"}
NOTEBOOK = "module://matplotlib_inline.backend_inline"  # what a notebook's child processes are told
BROKEN = {">/dev/full": 1, "2>&1 | true": 0, ">&- 2>&- <&-": 0}  # and the exit code


def shell(folder, line, how="", **environment):
    """Run a command with its streams bent; return its exit code and what was shown."""
    command, *words = shlex.split(line)
    python = [sys.executable, "-c", f"from mad.cli.{ENTRIES[command]} import main; main()", *words]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA_", "MAD_", "MPL"))}
    return subprocess.run(
        ["bash", "-c", f"{shlex.join(python)} {how}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose outputs hold a theft and its reference, and nothing that is derived from them."""
    made = tmp_path_factory.mktemp("streams")
    for one in (cell(), cell().reference):
        run(one, Store(made / "outputs"), CPU)
    return made


def derived(folder):
    """Return the names of what is derived from records, and remove it."""
    found = [*(folder / "outputs").glob("records.csv"), *(folder / "outputs").glob("figures/*")]
    names = sorted(path.suffix for path in found)
    for path in found:
        path.unlink()
    return names


@pytest.mark.parametrize("how", BROKEN)
def test_figures_are_written_whoever_reads(how, folder):
    done = shell(folder, "mad-figures", how)
    assert derived(folder) == [".csv", ".pdf", ".png"]
    assert done.returncode == BROKEN[how]
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == BROKEN[how], done.stderr
    assert all("standard output cannot be written (No space left on device)" in line for line in lines)


@pytest.mark.slow
def test_a_cell_is_made_and_drawn_whoever_reads(tmp_path):
    small = "pool.size=60 trainer.epochs=1 trainer.min_steps=0 knockoff.epochs=1 knockoff.min_steps=0 device=cpu"
    done = shell(tmp_path, f"mad-run {small}", ">&-")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.glob("outputs/runs/*/*/*/*/record.json"))) == 2
    for path in tmp_path.glob("outputs/runs/*/*/*/*/record.json"):
        json.loads(path.read_text())  # no line of output went into a file that took its place
    assert derived(tmp_path) == [".csv", ".pdf", ".png"]


@pytest.mark.parametrize(("line", "how"), [("mad-run --cfg job", ">&-"), ("mad-status -m", "2>&1 | true")])
def test_what_only_shows_ends_well_whoever_reads(line, how, folder):
    done = shell(folder, line, how)
    assert (done.returncode, done.stderr) == (0, "")


def test_data_is_checked_whoever_reads(tmp_path):
    done = shell(tmp_path, "mad-data digits --root d", ">/dev/full")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("mad: standard output cannot be written")


def test_neither_a_notebooks_backend_nor_a_users_settings_break_a_figure(folder, tmp_path):
    settings = tmp_path / "matplotlibrc"
    settings.write_text("text.usetex: True\nfont.family: nowhere\n")
    done = shell(folder, "mad-figures", MATPLOTLIBRC=str(settings), MPLBACKEND=NOTEBOOK, PATH="/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (0, "")
    assert derived(folder) == [".csv", ".pdf", ".png"]


def test_what_an_encoding_lacks_is_escaped(folder, tmp_path):
    (tmp_path / "ä").symlink_to(folder / "outputs")
    done = shell(tmp_path, "mad-figures --outputs ä", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\\xe4/records.csv" in done.stdout
    derived(folder)


class Torn(io.StringIO):
    """A stream that takes some writes and then no more."""

    def __init__(self, writes, number=errno.EPIPE):
        super().__init__()
        self.left, self.number = writes, number

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, "torn")
        return super().write(text)


@pytest.fixture
def torn(monkeypatch):
    """Tear standard output after some writes; the entry of a command around a function."""

    def make(writes, number, work):
        monkeypatch.setattr(sys, "stdout", Torn(writes, number))
        code = 0
        try:
            command.command(work)()
        except SystemExit as end:
            code = end.code
        return code, sys.stdout

    return make


@pytest.mark.parametrize(("number", "expected"), [(errno.EPIPE, 0), (errno.EBADF, 0), (errno.ENOSPC, 1)])
@pytest.mark.parametrize("writes", [0, 1, 3])
def test_work_goes_on_wherever_output_tears(number, expected, writes, torn, capsys):
    done = []

    def work():
        for step in range(5):
            out.print(f"step {step}")
            done.append(step)

    code, stream = torn(writes, number, work)
    assert done == [0, 1, 2, 3, 4]
    assert code == expected
    assert stream.getvalue().splitlines() == [f"step {step}" for step in range(writes)]
    assert isinstance(sys.stdout, Torn)  # as it was before


def test_an_error_keeps_its_code_and_line(torn, capsys):
    def fail():
        out.print("lost")
        raise MadError("what is wrong")

    assert torn(0, errno.EPIPE, fail)[0] == 1
    assert capsys.readouterr().err == "mad: what is wrong\n"


def test_ctrl_c_is_130_in_every_command(torn, capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert torn(0, errno.EPIPE, interrupted)[0] == 130
    assert "same command again" in capsys.readouterr().err


def test_a_jobs_process_is_guarded_once(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", NOTEBOOK)
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    command.guard()
    first = sys.stdout
    command.guard()
    assert sys.stdout is first
    print("to nobody")
    err.print("to nobody")
    assert sys.stdin.read() == ""
    assert os.environ["MPLBACKEND"] == "agg"
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()

"""A sweep's folder: each its own, held while the sweep runs, and left without hidden files."""

import hydra
import pytest
from toys import CPU, cell

import mad
from mad.cli import configs, sweep_folder
from mad.cli import figures as figures_command
from mad.cli.task import Task, in_turn
from mad.errors import MadError
from mad.pipeline import run
from mad.storage import files, records
from mad.storage.store import Store


@pytest.fixture(autouse=True)
def let_go():
    yield
    sweep_folder.end()


def hidden(outputs):
    return sorted(file.name for file in outputs.glob("sweeps/*/.*"))


def kill(folder):
    """Leave what a sweep that is killed leaves: its files, and no lock."""
    sweep_folder.first(folder, "abc")
    (folder / ".3.json.77.ab.tmp").write_text("half")
    sweep_folder.OPEN.pop()[1].close()


def test_what_a_killed_sweep_hid_goes_when_the_next_begins_or_ends(tmp_path):
    killed, running, new = (tmp_path / "sweeps" / name for name in ("killed", "running", "new"))
    sweep_folder.begin(tmp_path, killed)
    sweep_folder.note(killed, 0, {"overrides": ["seed=1"]})
    kill(killed)
    sweep_folder.begin(tmp_path, running)
    sweep_folder.first(running, "def")
    assert hidden(tmp_path) == [".def.turn", ".held"]
    sweep_folder.begin(tmp_path, new)
    assert hidden(tmp_path) == [".def.turn", ".held", ".held"]
    assert sweep_folder.read(killed) == [{"overrides": ["seed=1"]}]
    sweep_folder.first(killed, "abc")  # its jobs may live on for a while
    sweep_folder.end()
    assert hidden(tmp_path) == []
    assert not list(tmp_path.rglob("*.lock"))


def test_the_folder_of_a_running_sweep_is_no_others(tmp_path):
    folder = tmp_path / "elsewhere"
    sweep_folder.begin(tmp_path / "outputs", folder)
    with pytest.raises(MadError, match="still runs"):
        sweep_folder.begin(tmp_path / "outputs", folder)


def test_a_folder_that_is_used_again_starts_without_notes(tmp_path):
    folder = tmp_path / "sweeps" / "mine"
    for number in range(2):
        sweep_folder.begin(tmp_path, folder)
        assert sweep_folder.read(folder) == []
        sweep_folder.note(folder, number, {"overrides": []})
        kill(folder)


def test_a_links_files_are_left_alone(tmp_path):
    (tmp_path / "outputs" / "sweeps").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".1.tmp").write_text("")
    (tmp_path / "outputs" / "sweeps" / "link").symlink_to(tmp_path / "mine")
    sweep_folder.begin(tmp_path / "outputs", tmp_path / "outputs" / "sweeps" / "new")
    assert (tmp_path / "mine" / ".1.tmp").exists()
    with pytest.raises(MadError, match="leads out"):
        sweep_folder.begin(tmp_path / "outputs", tmp_path / "outputs" / "sweeps" / "link")


def test_notes_are_in_the_order_of_the_jobs(tmp_path):
    for number in (10, 9, 0):
        sweep_folder.note(tmp_path, number, {"overrides": [str(number)]})
    assert [each["overrides"] for each in sweep_folder.read(tmp_path)] == [["0"], ["9"], ["10"]]


def test_only_the_first_is_first(tmp_path):
    assert [sweep_folder.first(tmp_path, name) for name in "abaab"] == [True, True, False, False, False]


def test_a_reference_that_another_job_runs_is_waited_for_last(tmp_path):
    theft, one, two = mad.load("defense=mad"), tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    assert in_turn(theft, None) == in_turn(theft, one) == [theft.reference, theft]
    assert in_turn(theft, one) == [theft, theft.reference]
    assert in_turn(theft.reference, two) == [theft.reference]  # a job of its own
    assert in_turn(theft, two) == [theft, theft.reference]


def test_two_sweeps_of_one_second_have_their_own_folders():
    Task()  # knows what a folder is called by
    with hydra.initialize_config_dir(str(configs.config_dir()), version_base="1.3"):
        composed = [hydra.compose("config", return_hydra_config=True) for _ in range(2)]
    first, second = ({config.hydra.sweep.dir.rpartition("-")[2] for _ in range(3)} for config in composed)
    assert len(first) == len(second) == 1
    assert first != second


def test_failures_are_a_line_each_however_long(capfd):
    every = [{"overrides": ["seed=1", f"defense.epsilon={value}"]} for value in (0.25, 9, 10)]
    every[1]["error"] = "why " * 100
    sweep_folder.list_missing("failed", every[1:], every)
    first, second = capfd.readouterr().err.splitlines()
    assert first == "failed: defense.epsilon=9   " + ("why " * 100).rstrip()
    assert second == "failed: defense.epsilon=10  ended without a word: killed, or out of memory?"


def test_a_sweep_that_cannot_begin_is_one_line(mad_run, tmp_path, monkeypatch):
    (tmp_path / "in_the_way").write_text("")
    words = ["-m", "seed=0,1", "hydra/launcher=basic", "pool.size=100"]
    code, _, err = mad_run(*words, "hydra.sweep.dir=in_the_way/x")
    assert (code, len(err.splitlines())) == (1, 1), err
    monkeypatch.setattr(sweep_folder, "note", lambda *_: [][0])
    code, _, err = mad_run(*words)
    assert (code, len(err.splitlines())) == (1, 1), err
    assert "IndexError" in err
    assert hidden(tmp_path / "outputs") == []


def test_records_are_read_under_the_lock_of_what_is_derived_from_them(tmp_path, monkeypatch):
    """Else a sweep that ends between another's reading and its writing leaves the older records.csv."""
    record, _ = run(cell(), Store(tmp_path), CPU)
    lock, read, seen = tmp_path / files.lock_file(figures_command.DERIVED), records.read, []

    def watched(outputs):
        seen.append(files.holder(lock))
        return read(outputs)

    monkeypatch.setattr(records, "read", watched)
    figures_command.finish([cell().path], tmp_path)
    assert [each["pid"] for each in seen] == [files.os.getpid()]
    assert record["fingerprint"] in (tmp_path / "records.csv").read_text()
    assert files.holder(lock) is None

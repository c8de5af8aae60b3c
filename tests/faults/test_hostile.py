"""Fault 8: outputs that somebody else has written."""

import json
import os
import pickle

import pytest
import torch
from common import HERE, ONE, TOY, draw_nothing

from mad.cli import prune, status
from mad.storage import files

PLAN = {"label": "\x1b[31mx", "record": "../../etc/record.json", "error": None}


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture
def toy_run(mad_run, monkeypatch, tmp_path):
    """mad-run on a toy cell, whose trained surrogate is an artefact too."""
    monkeypatch.syspath_prepend(HERE)
    draw_nothing(monkeypatch)

    def call(*words):
        flags = [word for word in words if word == "-m"]
        return mad_run(*flags, *TOY, *ONE, "defense=mad_trained", *(word for word in words if word != "-m"))

    (tmp_path / "outputs" / "sweeps").mkdir(parents=True)
    assert call()[0] == 0
    return call


def tree(folder):
    return {path.relative_to(folder): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("format", ["pickle", "torch", "empty safetensors"])
def test_a_pickle_in_place_of_weights_is_not_run(format, toy_run, tmp_path):
    (facts,) = tmp_path.glob("outputs/victims/toy/*/victim.json")
    weights, target = facts.with_name("weights.safetensors"), tmp_path / "executed"
    if format == "torch":
        torch.save(Bomb(target), weights)
    else:
        weights.write_bytes(pickle.dumps(Bomb(target)) if format == "pickle" else b"")
    about = {**files.unseal(facts), "weights_sha256": files.hashlib.sha256(weights.read_bytes()).hexdigest()}
    facts.write_bytes(files.seal(about))  # whoever can write weights can write their checksum too
    code, _, err = toy_run("force=true")
    assert code == 0
    assert err.count("is damaged") == 1
    assert not target.exists()


@pytest.mark.parametrize("key", ["victim", "pool", "comparison_group", "attack"])
def test_a_record_whose_names_climb_writes_nothing_outside(key, toy_run, tmp_path):
    (record,) = tmp_path.glob("outputs/runs/toy/mad/*/*/record.json")
    record.write_bytes(files.seal({**files.unseal(record), key: "../../../climbed"}))
    before = [path.name for path in tmp_path.iterdir()]
    code, _, err = toy_run()
    assert "Traceback" not in err
    assert code == 0
    assert err.count("is damaged") == 1
    assert [path.name for path in tmp_path.iterdir()] == before
    assert not list(tmp_path.parent.rglob("*climbed*"))


@pytest.mark.parametrize(
    "foreign", [{"__class__": {"a": 1}}, {"more": [[]]}, {"_target_": "os.system"}, {"epsilon": "{}"}]
)
def test_foreign_keys_do_nothing(foreign, toy_run, tmp_path):
    (record,) = tmp_path.glob("outputs/runs/toy/mad/*/*/record.json")
    record.write_bytes(files.seal({**files.unseal(record), **foreign}))
    code, _, err = toy_run()
    assert code == 0
    assert ("damaged" in err) == ("_target_" not in foreign)


@pytest.mark.parametrize("where", ["runs", "victims", "figures", "sweeps", ".locks", "runs/toy", "victims/toy"])
def test_a_link_that_leads_out_is_one_line(where, toy_run, tmp_path):
    outside = tmp_path / "outside"
    (tmp_path / "outputs" / where).rename(outside)
    (tmp_path / "outputs" / where).symlink_to(outside)
    before = tree(outside)
    words = ["force=true"] if where != "sweeps" else ["defense.epsilon=0.5"]
    code, _, err = toy_run(*(["-m"] if where == "sweeps" else []), *words)
    assert code == 1
    assert [line for line in err.splitlines() if line.startswith("mad: ")] == err.splitlines()[-1:]
    assert "leads out of" in err
    assert tree(outside) == before


def test_a_link_in_place_of_a_file_is_never_written_through(toy_run, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("records.csv", *(f"figures/{file.name}" for file in (tmp_path / "outputs/figures").iterdir())):
        file = tmp_path / "outputs" / name
        file.unlink()
        file.symlink_to(precious)
    code, _, err = toy_run()
    assert "Traceback" not in err
    assert code in (0, 1)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["../../x", "/absolute", "..", "a/b", "", "x\n", "~"])
def test_a_victim_whose_name_climbs_is_one_line(name, mad_run, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(HERE)
    code, _, err = mad_run(*TOY, f"victim.name={json.dumps(name)}")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "victim.name" in err
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(PLAN),
        json.dumps({**PLAN, "record": "/etc/passwd"}),
        "[]",
        "{",
        '{"label": 1, "record": 3, "error": 0}',
    ],
)
def test_a_hostile_list_of_cells_is_data(line, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "outputs" / "sweeps" / "now"
    folder.mkdir(parents=True)
    (folder / status.PLAN).write_text(line)
    monkeypatch.setattr("sys.argv", ["mad-status", "--outputs", str(tmp_path / "outputs")])
    with pytest.raises(SystemExit):
        status.main()
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1
    assert "\x1b" not in out + err


@pytest.mark.parametrize(
    "where", ["victims/link", "victims/toy/link", "runs/link", "runs/toy/mad/knockoff/link", "failed"]
)
def test_pruning_follows_no_link(where, toy_run, tmp_path):
    outside = tmp_path / "outside"
    for folder in (outside, outside / "deeper", outside / "deeper" / "deepest"):
        folder.mkdir()
        for name in ("weights.safetensors", "record.json", "a.damaged", ".a.1.tmp"):
            (folder / name).write_text("mine")
    (tmp_path / "outputs" / where).symlink_to(outside)
    before = tree(outside)
    prune.prune(tmp_path / "outputs", yes=True)
    assert tree(outside) == before

"""A stolen model to take away, and the folders that exports are written to."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from test_export import LAMBDA
from toys import CPU, Blobs, Tiny, cell, victim

import mad
from mad.attacks.online import Online
from mad.datasets.checked import say
from mad.defenses.mad import Mad
from mad.deployment import deploy
from mad.errors import MadError
from mad.export import RECIPE, WEIGHTS
from mad.pipeline import run
from mad.storage.files import unwritable, write
from mad.storage.store import Store


@pytest.fixture
def one(tmp_path):
    """A cell that was run, and its stolen model in a folder."""
    record, _ = run(cell(), Store(tmp_path / "outputs"), CPU, exported=tmp_path / "away" / "stolen")
    return record, tmp_path / "away"


@pytest.mark.parametrize("path", ["os:system", "builtins:exec", "torch:load", "subprocess:Popen", "pathlib:Path"])
def test_a_recipe_names_no_code_but_networks(one, path):
    file = one[1] / "stolen" / RECIPE
    recipe = json.loads(file.read_text())
    for named in (
        {"import": path},
        {"partial": path, "arguments": ["touch x"], "keywords": {}},
        {"new": path, "fields": {}},
    ):
        file.write_text(json.dumps(recipe | {"architecture": named}))
        with pytest.raises(MadError, match=f"names {path}, which is no network's class"):
            mad.open_model(one[1])


def test_the_stolen_model_is_that_of_the_record(one):
    record, folder = one
    network, split = mad.open_model(folder), Blobs().test()
    assert not network.training
    assert isinstance(network, Tiny)
    found = (network(split.images / 255).argmax(dim=1) == split.labels).double().mean().item()
    assert found == record["stolen_accuracy"]
    recipe = json.loads((folder / "stolen" / RECIPE).read_text())
    assert (recipe["fingerprint"], recipe["mad"]) == (record["fingerprint"], mad.__version__)
    assert (recipe["shape"], recipe["classes"], recipe["architecture"]) == ([1, 8, 8], 4, {"import": "toys:Tiny"})
    assert recipe["scores"]["stolen_accuracy"] == record["stolen_accuracy"]
    assert torch.equal(mad.open_model(folder / "stolen").head.weight, network.head.weight)


def test_opening_needs_no_hydra_and_no_pickle(one):
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch; torch.load = None\n"
        "import pickle; pickle.loads = pickle.load = pickle.Unpickler = None\n"
        f"import mad; print(mad.open_model({str(one[1])!r})(torch.zeros(2, 1, 8, 8)).shape)\n"
        "assert 'mad.cli' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "torch.Size([2, 4])\n", done.stderr


def test_a_record_that_is_kept_without_its_model_is_made_again_by_its_transfer_set(tmp_path, fits, capfd, monkeypatch):
    store, folder = Store(tmp_path / "outputs"), tmp_path / "away" / "stolen"
    say.cache_clear()
    before, _ = run(cell(), store, CPU)
    fits.clear()
    asked = []
    attack = type(cell().attack)
    monkeypatch.setattr(attack, "run", lambda *given: asked.append(given))
    record, kept = run(cell(), store, CPU, exported=folder)
    assert (fits, asked, kept) == (["knockoff"], [], False)
    assert {name: record[name] for name in record if "seconds" not in name} == {
        name: before[name] for name in before if "seconds" not in name
    }
    err = capfd.readouterr().err
    assert f"its stolen model is not in {folder}: it is trained again" in err
    assert f"the stolen model is in {folder}" in err
    fits.clear()
    assert run(cell(), store, CPU, exported=folder) == (record, True)
    assert fits == []
    (folder / WEIGHTS).write_bytes(b"damaged")
    assert run(cell(), store, CPU, exported=folder)[1] is False
    assert mad.open_model(folder).head.weight.shape == (4, 64)


def test_a_network_that_the_attack_trained_is_exported(tmp_path):
    whole = cell(attack=Online(50, learning_rate=0.1))
    record, _ = run(whole, Store(tmp_path / "outputs"), CPU, exported=tmp_path / "stolen")
    split = Blobs().test()
    found = mad.open_model(tmp_path)(split.images / 255).argmax(dim=1) == split.labels
    assert found.double().mean().item() == record["stolen_accuracy"]


def test_another_cells_folder_is_refused_before_anything_is_trained(one, tmp_path, fits):
    fits.clear()
    with pytest.raises(MadError, match=r"stolen holds something else \(another export\): choose another folder"):
        run(cell(seed=1), Store(tmp_path / "outputs"), CPU, exported=one[1] / "stolen")
    assert fits == []
    run(cell(seed=1), Store(tmp_path / "outputs"), CPU)  # nor is it taken for its own once its record is kept
    with pytest.raises(MadError, match=r"stolen holds something else \(another export\)"):
        run(cell(seed=1), Store(tmp_path / "outputs"), CPU, exported=one[1] / "stolen")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    for use in (
        lambda folder: run(cell(seed=1), Store(tmp_path / "outputs"), CPU, exported=folder),
        lambda folder: deploy(victim()).export(folder),
    ):
        with pytest.raises(MadError, match=r"mine holds something else \(thesis.tex\): choose another folder"):
            use(tmp_path / "mine")
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_deployment_replaces_only_its_own_export(tmp_path, one):
    deploy(victim(), Mad(0.5)).export(tmp_path / "d")
    deploy(victim(), Mad(0.5)).export(tmp_path / "d")
    deploy(victim(), Mad(0.5)).export(one[1])  # beside the stolen model
    assert mad.open_model(one[1]) is not None
    assert mad.open_deployment(one[1]) is not None
    (tmp_path / "d" / "notes.txt").write_text("")
    with pytest.raises(MadError, match=r"holds something else \(notes.txt\)"):
        deploy(victim(), Mad(0.5)).export(tmp_path / "d")
    (tmp_path / "d" / "notes.txt").unlink()
    with pytest.raises(MadError, match="another export"):
        deploy(victim(), Mad(0.6)).export(tmp_path / "d")
    with pytest.raises(MadError, match=r"holds an exported deployment, not a model: mad\.open_deployment opens it"):
        mad.open_model(tmp_path / "d")


def test_an_architecture_that_cannot_travel_costs_nothing(tmp_path, fits):
    whole = cell(knockoff=replace(cell().knockoff, architecture=partial(LAMBDA)))
    with pytest.raises(MadError, match="the stolen model's architecture cannot be exported"):
        run(whole, Store(tmp_path / "outputs"), CPU, exported=tmp_path / "stolen")
    assert fits == []


def test_a_folder_that_cannot_be_written_costs_no_record(tmp_path, monkeypatch):
    def full(path, content):
        raise unwritable(path, OSError(28, "No space left on device"))

    monkeypatch.setattr("mad.export.write", full)
    store = Store(tmp_path / "outputs")
    with pytest.raises(MadError, match=r"cannot write .* \(No space left on device\); make room, or export to"):
        run(cell(), store, CPU, exported=tmp_path / "stolen")
    assert store.find(cell().path) is not None


def test_an_export_that_was_broken_off_goes_on(tmp_path, monkeypatch):
    """Killed between its two files, it is no whole export, and no other's either."""

    def stopped(path, content):
        write(path, content)
        raise KeyboardInterrupt

    store, folder = Store(tmp_path / "outputs"), tmp_path / "stolen"
    with monkeypatch.context() as patch:
        patch.setattr("mad.export.write", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(cell(), store, CPU, exported=folder)
    with pytest.raises(MadError, match=r"holds no exported model: .* No such file"):
        mad.open_model(folder)
    run(cell(), store, CPU, exported=folder)
    assert isinstance(mad.open_model(folder), Tiny)


def test_what_is_no_export_is_one_line(tmp_path, one):
    with pytest.raises(MadError, match=r"absent holds no exported model: .*recipe.json No such file"):
        mad.open_model(tmp_path / "absent")
    file = one[1] / "stolen" / RECIPE
    recipe = json.loads(file.read_text())
    file.write_text("{")
    with pytest.raises(MadError, match=r"recipe.json is damaged: export it again$"):
        mad.open_model(one[1])
    file.write_text(json.dumps(recipe | {"architecture": {"import": "nowhere:Net"}}))
    with pytest.raises(MadError, match=r"needs nowhere:Net, which cannot be imported .* or start where its file lies$"):
        mad.open_model(one[1])
    for name in ("architecture", "shape", "classes"):
        file.write_text(json.dumps({key: value for key, value in recipe.items() if key != name}))
        with pytest.raises(MadError, match=r"recipe.json is damaged: export it again$"):
            mad.open_model(one[1])
    file.write_text(json.dumps(recipe | {"classes": 5}))
    with pytest.raises(MadError, match="cannot be made again"):
        mad.open_model(one[1])


QUICK = [
    *("pool.size=60", "architecture=mlp", "trainer.epochs=1", "trainer.min_steps=0", "knockoff.epochs=1"),
    *("knockoff.min_steps=0", "device=cpu"),
]


def test_the_command_exports_the_cell_and_not_its_reference(mad_run, tmp_path):
    assert mad_run("defense.epsilon=0.5", *QUICK)[0] == 0
    records = {file: file.read_bytes() for file in tmp_path.glob("outputs/runs/**/record.json")}
    code, _, err = mad_run("defense.epsilon=0.5", *QUICK, "export=away")
    assert code == 0, err
    assert "is trained again" in err
    now = {file: file.read_bytes() for file in tmp_path.glob("outputs/runs/**/record.json")}
    assert sorted(file.parts[-4] for file in now if now[file] != records[file]) == ["mad"]  # its times
    (own,) = (json.loads(file.read_text()) for file in records if file.parts[-4] == "mad")
    assert "export" not in own["overrides"]
    assert json.loads((tmp_path / "away" / "stolen" / RECIPE).read_text())["fingerprint"] == own["fingerprint"]
    assert mad.open_model(tmp_path / "away")(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    before = (tmp_path / "away" / "stolen" / WEIGHTS).stat().st_mtime_ns
    assert mad_run("defense.epsilon=0.5", *QUICK, "export=away")[2].count("(kept)") == 2
    assert (tmp_path / "away" / "stolen" / WEIGHTS).stat().st_mtime_ns == before
    code, _, err = mad_run("defense.epsilon=0.6", *QUICK, "export=away")
    assert (code, err.count("\n")) == (1, 1)
    assert "away/stolen holds something else" in err


def test_a_sweep_exports_each_cell_to_its_own_folder(mad_run, tmp_path):
    line = ["-m", "hydra/launcher=basic", "defense.epsilon=0.5,0.8", *QUICK, "export=away"]
    for _ in range(2):
        assert mad_run(*line)[0] == 0
        found = {folder.name for folder in (tmp_path / "away").iterdir()}
        assert found == {file.parent.name for file in tmp_path.glob("outputs/runs/*/mad/**/record.json")}
        assert all(mad.open_model(tmp_path / "away" / name) is not None for name in found)
        shutil.rmtree(tmp_path / "away")


def test_python_exports_too(tmp_path):
    mad.run(cell(), tmp_path / "outputs", export=tmp_path / "away")
    assert mad.open_model(tmp_path / "away") is not None
    mad.deploy(cell(), outputs=tmp_path / "outputs").export(tmp_path / "api")
    assert mad.open_deployment(tmp_path / "api", device="cpu").session(3).budget == 3
    with pytest.raises(MadError, match=r"say export to mad\.run"):
        mad.load("export=x")
    with pytest.raises(MadError, match="a plan is mad-run's"):
        mad.load("plan=true")

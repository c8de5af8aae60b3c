"""A stolen model and a deployment can be taken away, and work where neither data nor outputs are."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from toys import CPU, Blobs, Tiny, cell, trainer, victim

import mad
from mad.architectures.lenet import LeNet
from mad.architectures.mlp import MLP
from mad.attacks.online import Online
from mad.datasets.checked import say
from mad.defenses import Defense, Undefended
from mad.defenses.mad import Mad
from mad.defenses.mad_argmax import MadArgmax
from mad.defenses.mad_random import MadRandom
from mad.defenses.random_noise import RandomNoise
from mad.defenses.reverse_sigmoid import ReverseSigmoid
from mad.defenses.surrogates import RandomSurrogate, TrainedSurrogate, VictimSurrogate
from mad.defenses.top_k import TopK
from mad.deployment import deploy
from mad.errors import MadError
from mad.export import RECIPE, WEIGHTS
from mad.pipeline import run
from mad.storage.store import Store

LAMBDA = lambda shape, classes: Tiny(shape, classes)  # noqa: E731
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
DEFENSES = [
    Undefended(),
    Mad(0.8),
    Mad(0.8, gradient="all"),
    Mad(0.8, RandomSurrogate(partial(MLP))),
    Mad(0.8, VictimSurrogate(), solver="exact"),
    Mad(0.8, TrainedSurrogate(trainer(), dataset=Blobs(size=300, name="others"))),
    MadArgmax(0.8, TrainedSurrogate(trainer())),
    MadRandom(0.8),
    RandomNoise(0.5),
    ReverseSigmoid(beta=0.5),
    TopK(k=2),
]


@dataclass
class Tensed(Defense):
    """Prepare a tensor, a number and a network from the data."""

    name = "tensed"
    epsilon: float | None = 2.0
    of_data: bool = False

    def prepare(self, context):
        self._lean, self._share = torch.rand(context.victim.dataset.classes), torch.rand(()).item()
        self._by = "a text"
        if self.of_data:
            self._lean = context.victim.training_split().labels[:4].float()

    def perturb(self, images, clean):
        return clean + self._share * self._lean


@dataclass
class Secretive(Tensed):
    """Keep what it prepares where no export looks."""

    def prepare(self, context):
        self._held = {"lean": torch.rand(context.victim.dataset.classes)}

    def perturb(self, images, clean):
        return clean + self._held["lean"]


@dataclass
class Counting(Defense):
    """Answer each client's first query as it is, and all others with the uniform posterior."""

    name = "counting"
    stateful = True
    epsilon: float | None = 2.0

    def prepare(self, context):
        self._shared = torch.zeros(())

    def begin(self):
        self._seen = 0

    def perturb(self, images, clean):
        self._seen += 1
        self._shared += 1
        return clean if self._seen == 1 else torch.full_like(clean, 1 / clean.shape[1])


def lenet(shape, classes, scale=1.0):
    """A network of a function."""
    return LeNet(shape=shape, classes=classes)


@pytest.fixture
def one(tmp_path):
    """A cell that was run, and its stolen model in a folder."""
    record, _ = run(cell(), Store(tmp_path / "outputs"), CPU, exported=tmp_path / "away" / "stolen")
    return record, tmp_path / "away"


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda each: f"{each.name} {getattr(each, 'surrogate', '')}"[:40])
def test_a_deployment_answers_as_before_without_data(defense, tmp_path, monkeypatch, fits):
    deployed = deploy(victim(), defense, seed=3)
    deployed.export(tmp_path / "away")
    assert sorted(each.name for each in (tmp_path / "away").iterdir()) == [RECIPE, WEIGHTS]
    fits.clear()
    for name in ("train", "test", "split"):
        monkeypatch.setattr(Blobs, name, None)
    opened = mad.open_deployment(tmp_path / "away")
    for ours, theirs in zip(deployed.session().answer(IMAGES), opened.session().answer(IMAGES), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert fits == []
    assert (opened.victim.name, opened.victim.dataset.name, opened.seed) == ("toy", "blobs", 3)
    assert (tuple(opened.victim.dataset.shape), opened.victim.dataset.classes) == ((1, 8, 8), 4)
    assert opened.session(5).budget == 5
    with pytest.raises(MadError, match="data set blobs is not part of what was exported"):
        opened.victim.train(CPU)


def test_the_weights_are_those_that_were_served(tmp_path):
    deployed = deploy(victim(), Mad(0.8))
    deployed.export(tmp_path / "away")
    file = tmp_path / "away" / WEIGHTS
    recipe = json.loads((tmp_path / "away" / RECIPE).read_text())
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    assert set(tensors) == {"served.head.weight", "served.head.bias", "_surrogate.head.weight", "_surrogate.head.bias"}
    assert recipe["architecture"] == {"import": "toys:Tiny"}
    assert recipe["defense"]["fields"]["surrogate"]["new"] == "mad.defenses.surrogates:RandomSurrogate"
    tensors["_surrogate.head.weight"] *= -1
    save_file(tensors, file)
    with pytest.raises(MadError, match=r"weights.safetensors is damaged \(its checksum does not hold\): export"):
        mad.open_deployment(tmp_path / "away")


def test_of_a_data_set_name_classes_and_shape_travel(tmp_path):
    deploy(victim(), Mad(0.5, TrainedSurrogate(trainer(), dataset=Blobs(size=300, name="others")))).export(
        tmp_path / "a"
    )
    recipe = json.loads((tmp_path / "a" / RECIPE).read_text())
    found = recipe["defense"]["fields"]["surrogate"]["fields"]["dataset"]
    assert found == {"data": {"name": "others", "classes": 4, "shape": [1, 8, 8]}}
    assert "300" not in json.dumps(recipe)


def test_an_opened_deployment_can_be_exported_again(tmp_path):
    deploy(victim(), Mad(0.8), seed=3).export(tmp_path / "a")
    mad.open_deployment(tmp_path / "a").export(tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert (tmp_path / "a" / RECIPE).read_text() == (tmp_path / "b" / RECIPE).read_text()


def test_what_a_defense_draws_travels_too(tmp_path):
    deployed = deploy(victim(), Tensed())
    deployed.export(tmp_path / "away")
    opened = mad.open_deployment(tmp_path / "away")
    assert torch.equal(deployed.session()(IMAGES), opened.session()(IMAGES))
    assert opened.defense._by == "a text"


def test_a_stateful_defense_begins_anew(tmp_path):
    deployed = deploy(victim(), Counting())
    deployed.session()(IMAGES)
    deployed.export(tmp_path / "away")
    opened = mad.open_deployment(tmp_path / "away")
    api, clean = opened.session(), opened.session().answer(IMAGES)[0]
    assert torch.equal(api(IMAGES), clean)
    assert torch.allclose(api(IMAGES), torch.tensor(0.25))
    assert opened.defense._shared == 3  # requests, and none of before
    assert opened.fresh().defense._shared == 0


def test_the_served_model_of_a_training_defense_travels(tmp_path):
    pytest.importorskip("opacus")
    from mad.architectures.resnet import ResNet18
    from mad.defenses.dp_sgd import DpSgd

    whole = victim(shape=(1, 16, 16), architecture=ResNet18)
    deployed = deploy(whole, DpSgd(epochs=1, min_steps=1, batch_size=20))
    deployed.export(tmp_path / "away")
    opened = mad.open_deployment(tmp_path / "away")
    images = torch.rand(9, 1, 16, 16)
    assert torch.allclose(deployed.session()(images), opened.session()(images), rtol=0, atol=1e-6)
    assert opened.columns == deployed.columns


@pytest.mark.parametrize(
    ("architecture", "defense", "text"),
    [
        (
            lambda shape, classes: Tiny(shape, classes),
            None,
            "architecture of victim toy cannot be exported: .*<lambda>",
        ),
        (partial(lambda shape, classes: Tiny(shape, classes)), None, "written in a function; put it at the top of a"),
        (type("Nowhere", (Tiny,), {}), None, "architecture of victim toy cannot be exported"),
        (type("Tiny", (Tiny,), {"__module__": "toys"}), None, "importing toys:Tiny gives something else"),
        (partial(lenet, scale=torch.ones(1)), None, "holds a Tensor, which no import path makes"),
        (
            Tiny,
            Mad(0.5, RandomSurrogate(lambda shape, classes: Tiny(shape, classes))),
            "defense mad cannot be exported",
        ),
        (Tiny, Tensed(of_data=True), "defense tensed cannot be exported: data set blobs is not part of what was"),
        (Tiny, Secretive(), "defense tensed cannot be exported: made again .* it answers something else"),
    ],
)
def test_what_cannot_travel_is_one_line_and_writes_nothing(architecture, defense, text, tmp_path):
    deployed = deploy(victim(), defense)
    deployed = replace(deployed, victim=replace(deployed.victim, architecture=architecture))
    with pytest.raises(MadError, match=text) as caught:
        deployed.export(tmp_path / "away")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "away").exists()


def test_functions_are_architectures_too(tmp_path):
    deployed = deploy(victim(shape=(1, 28, 28), architecture=partial(lenet, scale=2.0)))
    deployed.export(tmp_path / "away")
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(deployed.session()(images), mad.open_deployment(tmp_path / "away").session()(images))


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
        raise MadError("full") from OSError(28, "No space left on device")

    monkeypatch.setattr("mad.export.write", full)
    store = Store(tmp_path / "outputs")
    with pytest.raises(MadError, match=r"cannot be written \(No space left on device\): export to another folder$"):
        run(cell(), store, CPU, exported=tmp_path / "stolen")
    assert store.find(cell().path) is not None


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

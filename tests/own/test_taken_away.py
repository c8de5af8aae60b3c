"""Exports, logs and plans of a given victim: weights travel, and what only answers is refused in one line."""

import json

import pandas as pd
import pytest
import torch
from own_models import MODEL, Conv, Inside, Named, onnx, own, predict, safetensors, torchscript
from PIL import Image
from safetensors.torch import save_file
from toys import CPU, cell, trainer

import mad
from mad.architectures.mlp import MLP
from mad.attacks.replay import Replay
from mad.defenses import Undefended
from mad.defenses.dp_sgd import DpSgd
from mad.defenses.mad import Mad
from mad.defenses.surrogates import VictimSurrogate
from mad.deployment import deploy
from mad.errors import MadError
from mad.own import Own
from mad.own.normalized import Normalized
from mad.own.service import Service
from mad.pipeline import run
from mad.storage.store import Store

IMAGES = Named().images((1, 8, 8)).float()[:40] / 255
SHIFTED = {"mean": [0.2], "std": [0.7]}
DEFENSES = [Undefended(), Mad(0.8), Mad(0.8, VictimSurrogate())]


class Soft(Conv):
    """A network that answers with posteriors."""

    def forward(self, images):
        return super().forward(images).softmax(dim=1)


def given(tmp_path, architecture=Conv, **how):
    safetensors(tmp_path / "w.safetensors")
    return Own("own", Named(), architecture, trainer(), weights=str(tmp_path / "w.safetensors"), **how)


WEIGHTS = {
    "plain": dict(),
    "normalized": dict(normalize=SHIFTED),
    "normalized by name": dict(normalize="half"),
    "normalized inside": dict(architecture=Inside),
    "replaced inside": dict(architecture=Inside, normalize=SHIFTED),
    "posteriors": dict(architecture=Soft, answers="posteriors", normalize="half"),
}


def pictures(folder):
    """Write two classes of 20 images each; return the path of their folder."""
    for number in range(40):
        file = folder / ("dark", "light")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number + 200 * (number % 2)).save(file)
    return str(folder)


def check_equal(deployed, opened):
    for ours, theirs in zip(deployed.session().answer(IMAGES), opened.session().answer(IMAGES), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", WEIGHTS)
@pytest.mark.parametrize("defense", DEFENSES, ids=["none", "mad", "victim's surrogate"])
def test_a_deployment_of_weights_answers_as_before(how, defense, tmp_path, monkeypatch):
    deployed = deploy(given(tmp_path, **WEIGHTS[how]), defense, seed=3)
    deployed.export(tmp_path / "away")
    (tmp_path / "w.safetensors").unlink()
    for name in ("train", "test", "split"):
        monkeypatch.setattr(Named, name, None)
    opened = mad.open_deployment(tmp_path / "away")
    check_equal(deployed, opened)
    opened.export(tmp_path / "again")
    check_equal(deployed, mad.open_deployment(tmp_path / "again"))
    assert str(tmp_path) not in (tmp_path / "away" / "recipe.json").read_text()


def test_the_normalization_that_travels_is_the_owners(tmp_path):
    for how, scaled in (
        ("plain", IMAGES),
        ("normalized", (IMAGES - 0.2) / 0.7),
        ("replaced inside", (IMAGES - 0.2) / 0.7),
    ):
        deploy(given(tmp_path, **WEIGHTS[how])).export(tmp_path / how)
        with torch.no_grad():
            expected = torch.softmax(MODEL(scaled), dim=1)
        assert torch.allclose(mad.open_deployment(tmp_path / how).session()(IMAGES), expected, rtol=0, atol=1e-6)
    recipe = json.loads((tmp_path / "normalized" / "recipe.json").read_text())
    assert recipe["architecture"] == {"import": "own_models:Conv"}
    assert recipe["served"]["partial"] == "mad.own.victim:rebuilt"


def test_a_victim_that_is_trained_here_travels_with_its_normalization(tmp_path):
    deployed = deploy(own(normalize=SHIFTED), Mad(0.8))
    assert isinstance(deployed.model, Normalized)
    deployed.export(tmp_path / "away")
    check_equal(deployed, mad.open_deployment(tmp_path / "away"))


def test_so_does_one_that_is_trained_in_private(tmp_path):
    pytest.importorskip("opacus")
    deployed = deploy(own(normalize=SHIFTED), DpSgd(epochs=1, min_steps=1, batch_size=20))
    deployed.export(tmp_path / "away")
    opened = mad.open_deployment(tmp_path / "away")
    check_equal(deployed, opened)
    opened.export(tmp_path / "again")
    check_equal(deployed, mad.open_deployment(tmp_path / "again"))


@pytest.mark.parametrize("form", ["torchscript", "onnx", "function", "network", "service"])
def test_what_only_answers_is_one_line_and_writes_nothing(form, tmp_path):
    if form == "service":
        victim = own(url="http://127.0.0.1:9/v2/models/digits", service=Service)
        deployed = deploy(own(function=predict))
        deployed = mad.deployment.replace(deployed, victim=victim)
    elif form in ("function", "network"):
        deployed = deploy(own(function=MODEL if form == "network" else predict))
    else:
        file = tmp_path / {"torchscript": "w.ts", "onnx": "w.onnx"}[form]
        {"torchscript": torchscript, "onnx": onnx}[form](file)
        deployed = deploy(own(weights=str(file)))
    with pytest.raises(
        MadError, match=r"^victim own cannot be exported: victim\.\w+=.* has no weights of an arch"
    ) as said:
        deployed.export(tmp_path / "away")
    assert str(said.value).endswith("so there is nothing to write")
    assert "\n" not in str(said.value)
    assert not (tmp_path / "away").exists()


@pytest.mark.parametrize("how", [dict(normalize="half"), dict(function=predict)], ids=["weights", "function"])
def test_the_stolen_model_of_a_given_victim_is_taken_away(how, tmp_path):
    victim = own(**how) if "function" in how else given(tmp_path, **how)
    record, _ = run(cell(victim=victim), Store(tmp_path / "outputs"), CPU, exported=tmp_path / "away" / "stolen")
    network, split = mad.open_model(tmp_path / "away"), Named().test()
    assert isinstance(network, Conv)  # the knockoff's architecture, with no normalization of the victim's
    found = (network(split.images / 255).argmax(dim=1) == split.labels).double().mean().item()
    assert found == record["stolen_accuracy"]


def log(folder, answers):
    """Write a log of answers about the images of ``pictures``; return its path."""
    files = sorted(folder.glob("*/*.png"))
    frame = pd.DataFrame({"file": [str(file.relative_to(folder)) for file in files], "answer": answers})
    frame.to_csv(folder / "log.csv", index=False)
    return str(folder / "log.csv")


@pytest.mark.parametrize("how", ["weights", "function", "a label"])
def test_a_log_of_a_given_victim_is_replayed_and_it_is_asked_only_for_the_score(how, tmp_path):
    pictures(tmp_path / "data")
    path = log(tmp_path / "data", [[0.7, 0.1, 0.1, 0.1]] * 40)
    victim = given(tmp_path, normalize="half") if how == "weights" else own(function=predict)
    if how == "a label":
        victim = own(function=lambda images: MODEL(images).argmax(1), answers="labels")
    for defense in (Undefended(), Mad(0.5)):
        whole = cell(victim=victim, defense=defense, attack=Replay(log=path), pool=None)
        record, _ = run(whole, Store(tmp_path / "outputs"), CPU)
        assert (record["attack"], record["queries"]) == ("replay", 40)
        assert record["l1_mean_queries"] == pytest.approx(defense.epsilon or 0, abs=1e-3)


def test_one_command_plans_replays_and_exports_a_model_of_ones_own(mad_run, tmp_path):
    folder = pictures(tmp_path / "data")
    network = MLP(shape=(1, 8, 8), classes=2)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "w.safetensors")
    log(tmp_path / "data", [[0.9, 0.1]] * 20 + [[0.1, 0.9]] * 20)
    line = [
        *("victim=own", f"data={folder}", "victim.weights=w.safetensors", "victim.normalize=half", "architecture=mlp"),
        *("attack=replay", "attack.log=data/log.csv", "knockoff.epochs=1", "knockoff.min_steps=0", "device=cpu"),
    ]
    before = sorted(tmp_path.rglob("*"))
    code, out, err = mad_run(*line, "plan=true")
    assert code == 0, err
    assert "2 cells: 0 kept, 2 to do" in out
    assert sorted(tmp_path.rglob("*")) == before
    code, _, err = mad_run(*line, "export=away")
    assert code == 0, err
    assert mad.open_model(tmp_path / "away")(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    assert not list((tmp_path / "outputs").glob("victims/own/*"))
    assert "2 cells: 2 kept, 0 to do" in mad_run(*line, "plan=true", "export=away")[1]

"""A plug-in that returns what it should not is named, with what was expected and what came."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from toys import CPU, Tiny, cell, trainer, victim

from mad.attacks import Attack, Stolen, TransferSet
from mad.attacks.knockoff_nets import KnockoffNets
from mad.defenses import Defense
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.recoveries import Recovery
from mad.storage.store import Store

WRONG = {  # what posteriors (B, 4) may not become
    "one class less": (lambda rows: rows[:, :3], r"\(50, 4\), float32 on cpu.* got a tensor of \(50, 3\)"),
    "one row less": (lambda rows: rows[1:], r"got a tensor of \(49, 4\)"),
    "classes alone": (lambda rows: rows.argmax(dim=1), r"got a tensor of \(50,\), int64"),
    "whole numbers": (lambda rows: rows.round().long(), "int64 on cpu"),
    "complex": (lambda rows: rows.to(torch.complex64), "complex64"),
    "another device": (lambda rows: rows.to("meta"), "float32 on meta"),
    "nothing": (lambda rows: None, "got None"),
    "numpy": (lambda rows: rows.detach().numpy(), r"got a numpy\.ndarray"),
    "a list": (lambda rows: rows.tolist(), r"got a builtins\.list"),
    "a pair": (lambda rows: (rows, rows), r"got a builtins\.tuple"),
    "in place": (lambda rows: rows.mul_(0.5), "changed in place"),
}


@dataclass
class Made(Defense):
    name = "made"
    make: object = None
    epsilon: float | None = 0.5

    def perturb(self, images, clean):
        return self.make(clean)


@dataclass
class Recovered(Recovery):
    name = "recovered"
    make: object = None

    def __call__(self, answers, images=None):
        return self.make(answers)


@pytest.mark.parametrize("kind", WRONG)
def test_a_defense_is_named(kind):
    make, said = WRONG[kind]
    clean = torch.full((50, 4), 0.25)
    with pytest.raises(MadError, match=rf"defense made: perturb .*{said}"):
        Made(make=make)(torch.zeros(50, 1, 8, 8), clean)


def test_a_defense_that_writes_into_the_images_is_named():
    images = torch.zeros(50, 1, 8, 8)
    with pytest.raises(MadError, match="defense made: perturb changed in place"):
        Made(make=lambda clean: images.add_(1)[:, 0, 0, :4] / 4)(images, torch.full((50, 4), 0.25))


@pytest.mark.parametrize("make", [torch.Tensor.double, torch.Tensor.half, lambda rows: rows.requires_grad_()])
def test_other_precisions_and_gradients_of_a_defense_are_taken(make):
    clean = torch.full((5, 4), 0.25)
    answer = Made(make=lambda rows: make(torch.eye(4)[:1].repeat(5, 1)))(torch.zeros(5, 1, 8, 8), clean)
    assert (answer.dtype, answer.requires_grad) == (torch.float32, False)
    assert torch.allclose(answer[0], torch.tensor([0.5, 1 / 6, 1 / 6, 1 / 6]))


def test_a_defense_that_answers_nan_is_named_once(capfd):
    clean = torch.full((5, 4), 0.25)
    defense = Made(make=lambda rows: torch.where(torch.arange(5)[:, None] < 2, torch.nan, rows))
    for _ in range(3):
        assert torch.equal(defense(torch.zeros(5, 1, 8, 8), clean), clean)
    (line,) = capfd.readouterr().err.splitlines()
    assert "defense made: perturb returned NaN" in line
    assert "2 of 5 images" in line


@pytest.mark.parametrize("kind", [*WRONG, "no posteriors", "nan"])
def test_a_recovery_is_named(kind):
    more = {"no posteriors": (lambda rows: rows * 2, "sum to 1"), "nan": (lambda rows: rows * torch.nan, "NaN")}
    make, said = (WRONG | more)[kind]
    adversary = cell(recovery=Recovered(make)).adversary(CPU)
    with pytest.raises(MadError, match=rf"recovery recovered .*{said}"):
        adversary.recovered(torch.full((50, 4), 0.25))


def test_a_recovery_is_named_in_a_cell(tmp_path):
    with pytest.raises(MadError, match="recovery recovered must return"):
        run(cell(recovery=Recovered(thin)), Store(tmp_path), CPU)


def thin(rows):
    return rows[:, :3]


@dataclass(frozen=True)
class Brought(Attack):
    """Ask as knockoff does, and bring home something else."""

    name = "brought"
    what: str = ""

    def run(self, api, pool, adversary):
        found = KnockoffNets(self.budget).run(api, pool, adversary).transfer
        parts = {"images": found.images, "rows": found.rows, "answers": found.answers}
        match self.what:
            case "nothing":
                return None
            case "an empty one":
                return Stolen()
            case "its answers alone":
                return Stolen(transfer=found.answers)
            case "a network in train mode":
                return Stolen(adversary.untrained().train())
            case "a function":
                return Stolen(network=torch.relu)
            case "other images":
                parts["images"] = parts["images"][:, :, :4]
            case "float rows":
                parts["rows"] = parts["rows"].float()
            case "rows beyond":
                parts["rows"] = parts["rows"] + 1000
            case "fewer answers":
                parts["answers"] = parts["answers"][1:]
            case "logits":
                parts["answers"] = parts["answers"].log()
            case "numpy":
                parts["answers"] = parts["answers"].numpy()
        return Stolen(transfer=TransferSet(**parts))


TRANSFERS = {
    "nothing": "Stolen with a network, a transfer set or both, got None",
    "an empty one": "Stolen with a network, a transfer set or both, got neither network nor transfer set",
    "its answers alone": "got a tensor of",
    "a network in train mode": r"a network in eval mode, got a toys\.Tiny",
    "a function": r"a network in eval mode, got a builtins\.builtin",
    "other images": r"images of \(1, 8, 8\), got \(200, 1, 4, 8\)",
    "float rows": "rows as a tensor of int64.*float32",
    "rows beyond": "rows from 0 to 199, got 1",
    "fewer answers": r"50 posteriors over 4 classes, got a tensor of \(49, 4\)",
    "logits": "50 posteriors over 4 classes",
    "numpy": r"50 posteriors .*numpy\.ndarray",
}


@pytest.mark.parametrize("what", TRANSFERS)
def test_an_attack_is_named(what, tmp_path):
    with pytest.raises(MadError, match=f"attack brought: run must return .*{TRANSFERS[what]}"):
        run(cell(attack=Brought(50, what)), Store(tmp_path), CPU)
    assert not list(tmp_path.rglob("record.json"))


@dataclass(frozen=True)
class Lazy(Attack):
    """Ask a tenth of what it may."""

    name = "lazy"

    def run(self, api, pool, adversary):
        rows = torch.arange(5)
        return Stolen(transfer=TransferSet(pool, rows, api(pool[rows] / 255)))


def test_an_attack_that_spends_less_than_its_budget_is_named(tmp_path):
    with pytest.raises(MadError, match="attack lazy: run must spend the whole budget of 50 queries, spent 5"):
        run(cell(attack=Lazy(50)), Store(tmp_path), CPU)


class Odd(Tiny):
    """One linear layer whose answers are turned into something else."""

    def __init__(self, shape, classes, turn):
        super().__init__(shape, classes)
        self.turn = turn

    def forward(self, images):
        return TURNS[self.turn][0](super().forward(images))


TURNS = {
    "classes": (lambda logits: logits[:, :3], r"logits \(2, 4\), got a tensor of \(2, 3\)"),
    "flat": (lambda logits: logits.sum(dim=1), r"got a tensor of \(2,\)"),
    "pair": (lambda logits: (logits, logits), r"got a builtins\.tuple"),
    "numpy": (lambda logits: logits.detach().numpy(), r"got a numpy\.ndarray"),
    "raises": (lambda logits: logits @ torch.zeros(7, 7), r"cannot take images of \(1, 8, 8\) to 4 classes \(Runtime"),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("part", ["architecture of victim toy", "knockoff/architecture"])
def test_an_architecture_is_named_before_anything_is_trained(turn, part, tmp_path, fits):
    odd = partial(Odd, turn=turn)
    parts = {"victim": victim(architecture=odd)} if part.startswith("arch") else {"knockoff": Knockoff(trainer(), odd)}
    with pytest.raises(MadError, match=rf"{part}, odd, .*{TURNS[turn][1]}"):
        run(cell(**parts), Store(tmp_path), CPU)
    assert fits == []
    assert not list(tmp_path.glob("victims/*"))


class Writes(Tiny):
    """One linear layer that normalizes its caller's images in place."""

    def forward(self, images):
        return super().forward(images.sub_(0.5))


@pytest.mark.parametrize("part", ["architecture of victim toy", "knockoff/architecture"])
def test_an_architecture_that_writes_into_its_images_is_named(part, tmp_path, fits):
    parts = {"victim": victim(architecture=Writes)}
    if part.startswith("knockoff"):
        parts = {"knockoff": Knockoff(trainer(), Writes)}
    with pytest.raises(MadError, match=rf"{part}, \S*[Ww]rites, changed in place"):
        run(cell(**parts), Store(tmp_path), CPU)
    assert fits == []


def not_a_network(shape, classes):
    return np.zeros(3)


def test_what_is_no_network_is_named(tmp_path):
    with pytest.raises(MadError, match=r"victim toy, not_a_network, .* got a numpy\.ndarray"):
        run(cell(victim=victim(architecture=not_a_network)), Store(tmp_path), CPU)


def test_trying_a_network_changes_no_number(tmp_path, monkeypatch):
    tried = run(cell(), Store(tmp_path / "a"), CPU)[0]
    monkeypatch.setattr("mad.pipeline.try_networks", lambda cell: None)
    untried = run(cell(), Store(tmp_path / "b"), CPU)[0]
    timed = [{key: value for key, value in each.items() if not key.startswith("seconds")} for each in (tried, untried)]
    assert timed[0] == timed[1]


@dataclass
class Unserved(Defense):
    name = "unserved"
    epsilon: float | None = 0.5

    def serve(self, context):
        return None

    def perturb(self, images, clean):
        return clean


def test_a_defense_that_serves_no_model_is_named(tmp_path):
    with pytest.raises(MadError, match=r"defense unserved: serve must return a torch\.nn\.Module, got None"):
        run(cell(defense=Unserved()), Store(tmp_path), CPU)


def test_a_served_model_is_any_module(tmp_path):
    class Other(Unserved):
        name = "other"

        def serve(self, context):
            return nn.Sequential(context.model).eval()

    assert run(cell(defense=Other()), Store(tmp_path), CPU)[0]["defense"] == "other"

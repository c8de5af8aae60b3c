"""An attack that has no pool: it makes its own images, and brings home a network."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from toys import CPU, Blobs, cell, trainer

from mad.attacks import Attack, Stolen, TransferSet
from mad.attacks.base import PAPER_BUDGET, queried
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.schema import Column
from mad.seeds import generator
from mad.storage.store import Store


@dataclass(frozen=True)
class Imagined(Attack):
    """Ask about noise, and train on the answers as they come."""

    name = "imagined"
    needs_pool = False
    schema = (Column("steps", "whole number", "steps, at least 1", "how many the network took"),)
    said: int = 7

    def run(self, api, pool, adversary):
        assert pool is None
        draw, network = generator(adversary.seed, "noise"), adversary.untrained("imagined")
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        sizes = [min(8, api.budget - start) for start in range(0, api.budget, 8)]
        for images, found in queried(api, (torch.rand(n, *api.shape, generator=draw) for n in sizes), api.budget):
            optimizer.zero_grad()
            F.cross_entropy(network(images), adversary.recovered(found, images)).backward()
            optimizer.step()
        return Stolen(network.eval(), columns={"steps": len(sizes)}, trainer=replace(trainer(), epochs=self.said))


def test_it_runs_without_a_pool(tmp_path, fits):
    whole = cell(attack=Imagined(50), pool=None)
    record, _ = run(whole, Store(tmp_path), CPU)
    assert fits == ["victim toy"]
    assert (record["pool"], record["queries"], record["budget"], record["steps"]) == ("none", 50, 50, 7)
    assert record["learned"] is None  # no transfer set to fit
    assert (record["knockoff_epochs"], record["knockoff_optimizer"]) == (7, "momentum")
    assert record["l1_mean_queries"] > 0
    assert 0 <= record["stolen_accuracy"] <= 1
    assert run(whole, Store(tmp_path), CPU) == (record, True)
    assert not list(tmp_path.glob("transfers/*"))


def test_a_pool_that_is_given_changes_nothing():
    plain = cell(attack=Imagined(50), pool=None)
    assert cell(attack=Imagined(50), pool=Blobs()).fingerprint == plain.fingerprint
    assert cell(attack=Imagined(50)).pool is None
    assert cell(attack=Imagined(50), seed=1).fingerprint != plain.fingerprint
    assert cell(attack=Imagined(50)).reference.pool is None


def test_another_attack_needs_one():
    with pytest.raises(MadError, match=r"^attack knockoff draws on images of its own: give it a pool$"):
        cell(pool=None)


def test_its_budget_has_no_bound():
    assert Imagined().affordable(None, "none") == PAPER_BUDGET
    assert Imagined(10**6).affordable(None, "none") == 10**6


@dataclass(frozen=True)
class Hoarding(Imagined):
    """Keep what it asked, and leave the training to the knockoff."""

    name = "hoarding"
    schema = ()

    def run(self, api, pool, adversary):
        images = torch.rand(api.budget, *api.shape, generator=generator(adversary.seed, "noise"))
        return Stolen(transfer=TransferSet(images, torch.arange(api.budget), api(images)))


def test_it_may_bring_home_images_of_its_own_making(tmp_path, fits):
    record, _ = run(cell(attack=Hoarding(50), knockoff=Knockoff(trainer(epochs=3))), Store(tmp_path), CPU)
    assert fits == ["victim toy", "knockoff"]
    assert (record["pool"], record["knockoff_epochs"]) == ("none", 3)
    assert record["learned"] in (True, False)


@dataclass(frozen=True)
class Undeclared(Imagined):
    """Write a column that its schema does not explain."""

    name = "undeclared"
    schema = ()


def test_columns_that_no_schema_explains_are_refused(tmp_path):
    with pytest.raises(MadError, match="attack undeclared cannot be recorded: 'steps' is not in its schema"):
        run(cell(attack=Undeclared(50)), Store(tmp_path), CPU)
    assert not list(tmp_path.rglob("record.json"))

"""ModelGuard-W behind an API; its solver is tested in tests/solvers/test_modelguard.py."""

import pytest
import torch
from toys import CPU, cell, victim

from mad import simplex
from mad.defenses.modelguard_w import ModelGuardW
from mad.deployment import deploy
from mad.pipeline import run
from mad.storage.store import Store
from mad.testing import KINDS, posteriors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epsilon", [None, 1e-7, 0.1, 1, 2])
def test_every_top_class_is_kept(kind, epsilon):
    for classes in (2, 10, 100):
        clean = posteriors(kind, classes)
        answers = deploy(victim(classes), ModelGuardW(epsilon)).defense(torch.zeros(len(clean), 1, 8, 8), clean)
        assert torch.equal(answers.argmax(dim=1), clean.argmax(dim=1))


def test_rounding_does_not_choose_the_top_class():
    clean = torch.full((1, 5), 0.2)
    clean[0, 3] = torch.nextafter(clean[0, 3], torch.ones(()))
    answers = deploy(victim(5), ModelGuardW(3e-8)).defense(torch.zeros(1, 1, 8, 8), clean)
    assert answers.argmax() == 3


def test_without_a_budget_it_may_go_anywhere():
    clean = posteriors("dirichlet", 10)
    images = torch.zeros(len(clean), 1, 8, 8)
    free, whole = (deploy(victim(10), ModelGuardW(epsilon)).defense(images, clean) for epsilon in (None, 2))
    assert torch.equal(free, whole)
    assert simplex.l1(free, clean).mean() > 0.8


def test_a_cell_costs_no_accuracy(tmp_path):
    record = run(cell(defense=ModelGuardW(1.0)), Store(tmp_path), CPU)[0]
    assert record["defended_accuracy"] == record["victim_accuracy"]
    assert 0.5 < record["l1_mean"] <= record["l1_max"] <= 1 + 1e-5

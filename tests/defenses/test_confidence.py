"""The label with its probability."""

import pytest
import torch
from toys import CPU, cell, victim

from mad import simplex
from mad.defenses import Context
from mad.defenses.confidence import Confidence
from mad.pipeline import run
from mad.storage.store import Store
from mad.testing import KINDS, posteriors


def answered(clean, epsilon=None):
    ready = Confidence(epsilon).prepared(Context(victim(clean.shape[1]), torch.nn.Identity(), 0, CPU))
    return ready(torch.zeros(len(clean), 1, 8, 8), clean)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_it_keeps_the_top_probability_and_spreads_the_rest(kind, classes):
    clean = posteriors(kind, classes)
    answers = answered(clean)
    assert torch.equal(answers.argmax(dim=1), clean.argmax(dim=1))
    for row, answer in zip(clean.tolist(), answers.tolist(), strict=True):
        top = row.index(max(row))
        expected = [(1 - row[top]) / (classes - 1)] * classes
        expected[top] = row[top]
        assert answer == pytest.approx(expected, abs=1e-6)


def test_two_classes_are_told_in_full():
    clean = posteriors("dirichlet", 2)
    assert torch.allclose(answered(clean), clean, rtol=0, atol=1e-6)


def test_rounding_changes_no_top_class():
    flat = torch.full((500, 7), 1 / 7) + 1e-8 * torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(answered(flat).argmax(dim=1), flat.argmax(dim=1))


def test_a_cell(tmp_path):
    record = run(cell(defense=Confidence(0.2)), Store(tmp_path), CPU)[0]
    assert record["defended_accuracy"] == record["victim_accuracy"]
    assert 0 < record["l1_max"] <= 0.2 + 1e-5
    assert simplex.l1(answered(posteriors("dirichlet", 10), 0.2), posteriors("dirichlet", 10)).max() <= 0.2 + 1e-5

"""The exponential mechanism against its definition."""

import math

import pytest
import torch
from toys import CPU, cell, victim

from mad.defenses import Context
from mad.defenses.dp_posterior import DpPosterior
from mad.defenses.random_noise import keyed_uniform
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.store import Store
from mad.testing import KINDS, posteriors


def ready(defense, classes=10, seed=0):
    return defense.prepared(Context(victim(classes), torch.nn.Identity(), seed, CPU))


def formula(row, privacy):
    mass = [math.exp(privacy * y / 2) for y in row]
    return [value / sum(mass) for value in mass]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("privacy", [0, 1, 30, 1e4])
def test_the_posterior_is_its_formula(kind, privacy):
    for classes in (2, 10, 100):
        clean = posteriors(kind, classes)
        found = ready(DpPosterior(privacy=privacy), classes)(torch.zeros(len(clean), 1, 8, 8), clean)
        if privacy < 1e3:
            expected = torch.tensor([formula(row, privacy) for row in clean.tolist()])
            assert torch.allclose(found, expected, rtol=0, atol=1e-6)
        assert found.isfinite().all()
        assert privacy in (0, 1) or torch.equal(found.argmax(dim=1), clean.argmax(dim=1))


def test_labels_are_drawn_by_key_and_image():
    clean, images = posteriors("dirichlet", 10), torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    defense = ready(DpPosterior(privacy=3.0, answers="label"))
    drawn = keyed_uniform(images, 1, defense._key).squeeze(1).tolist()
    labels = defense(images, clean).argmax(dim=1).tolist()
    for row, uniform, label in zip(clean.tolist(), drawn, labels, strict=True):
        chances = formula(row, 3.0)
        assert sum(chances[:label]) <= uniform <= sum(chances[: label + 1])
    assert torch.equal(defense(images, clean).sum(dim=1), torch.ones(12))
    assert labels != ready(DpPosterior(privacy=3.0, answers="label"), seed=1)(images, clean).argmax(dim=1).tolist()


def test_labels_are_as_frequent_as_the_mechanism_says():
    images = torch.rand(20000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    clean = torch.tensor([[0.7, 0.2, 0.1]]).expand(20000, 3)
    found = ready(DpPosterior(privacy=2.0, answers="label"), 3)(images, clean).mean(dim=0)
    assert found.tolist() == pytest.approx(formula([0.7, 0.2, 0.1], 2.0), abs=0.012)


def test_a_label_is_private():
    """No label is likelier by more than exp(privacy) for another posterior, whichever two they are."""
    rows = torch.cat([posteriors(kind, 10) for kind in KINDS])
    chances = ready(DpPosterior(privacy=1.5))(torch.zeros(len(rows), 1, 8, 8), rows).double()
    assert (chances.unsqueeze(0) / chances.unsqueeze(1)).max() <= math.exp(1.5) + 1e-5


def test_a_cell(tmp_path):
    flat, sure = (run(cell(defense=DpPosterior(privacy=each)), Store(tmp_path), CPU)[0] for each in (1.0, 50.0))
    assert (flat["strength_parameter"], flat["strength"]) == ("privacy", 1.0)
    assert flat["answer_entropy"] > 1.9 > sure["answer_entropy"]
    assert flat["defended_accuracy"] == flat["victim_accuracy"]


@pytest.mark.parametrize(
    ("setting", "value"), [("privacy", -1), ("privacy", "low"), ("answers", "both"), ("epsilon", 3)]
)
def test_a_bad_setting_is_refused(setting, value):
    with pytest.raises(MadError, match=f"defense.{setting}"):
        DpPosterior(**{setting: value})

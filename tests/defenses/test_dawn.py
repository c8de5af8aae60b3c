"""DAWN: which answers carry the watermark, and how it is found in a stolen model."""

import math

import pytest
import torch
from scipy import stats
from toys import CPU, Tiny, cell, victim

from mad.attacks import TransferSet
from mad.defenses import Chain, Context, Dawn, Rounding
from mad.defenses.dawn import log10_tail, permuted
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.store import Store


def images(count, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def posteriors(count, classes=10, seed=0):
    return torch.softmax(4 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)), dim=1)


def ready(classes=10, seed=0, **settings):
    toy = victim(classes)
    context = Context(toy, toy.untrained(seed=0, purpose="victim"), seed, CPU)
    return Dawn(**settings).prepared(context), context


def by_hand(row, numbers):
    """Return a permuted row, entry by entry."""
    classes = range(len(row))
    top = max(classes, key=lambda k: row[k])
    target = max((k for k in classes if k != top), key=lambda k: numbers[k])
    places = sorted((k for k in classes if k != target), key=lambda k: numbers[k])
    sources = [k for k in classes if k != top]
    found = [0.0] * len(row)
    found[target] = row[top]
    for place, source in zip(places, sources, strict=True):
        found[place] = row[source]
    return found


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_a_wrong_class_is_on_top_and_nothing_is_lost(classes):
    clean = posteriors(50, classes)
    drawn = torch.rand(50, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = permuted(clean, drawn)
    assert found.tolist() == [by_hand(*pair) for pair in zip(clean.tolist(), drawn.tolist(), strict=True)]
    assert torch.equal(found.sort(dim=1).values, clean.sort(dim=1).values)
    assert (found.argmax(dim=1) != clean.argmax(dim=1)).all()


def test_each_wrong_class_is_as_likely():
    defense, _ = ready(share=1.0)
    clean = torch.eye(10)[torch.zeros(4500, dtype=torch.int64)]
    counts = defense(images(4500), clean).argmax(dim=1).bincount(minlength=10)
    assert counts[0] == 0
    assert (counts[1:] - 500).abs().max() < 100


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 1])
def test_a_share_is_marked_and_always_alike(share):
    defense, _ = ready(share=share)
    some, clean = images(2000), posteriors(2000)
    answers = defense(some, clean)
    marked = (answers != clean).any(dim=1)
    assert marked.float().mean() == pytest.approx(share, abs=0.03)
    assert (answers.argmax(dim=1) != clean.argmax(dim=1)).sum() == marked.sum()
    assert torch.equal(torch.cat([defense(*each) for each in zip(some.split(7), clean.split(7), strict=True)]), answers)
    others = ready(share=share, seed=1)[0](some, clean)
    assert share in (0,) or not torch.equal(others, answers)


def test_small_changes_of_an_image_leave_its_answer():
    defense, _ = ready(share=0.5, grid=4)
    some, clean = images(500), posteriors(500)
    noise = 0.01 * torch.rand(some.shape, generator=torch.Generator().manual_seed(9))
    near, far = (defense((some + size * noise).clamp(0, 1), clean) for size in (1, 50))
    answers = defense(some, clean)
    assert (near == answers).all(dim=1).float().mean() > 0.8
    assert (far == answers).all(dim=1).float().mean() < 0.6


@pytest.mark.parametrize(
    ("hits", "trials", "chance"), [(0, 5, 0.1), (3, 5, 0.1), (5, 5, 0.5), (40, 250, 1 / 9), (1, 1, 1)]
)
def test_the_tail_is_the_binomials(hits, trials, chance):
    assert log10_tail(hits, trials, chance) == pytest.approx(
        math.log10(stats.binom.sf(hits - 1, trials, chance)), abs=1e-9
    )


def test_the_tail_does_not_underflow():
    assert log10_tail(1000, 1000, 1 / 9) == pytest.approx(-1000 * math.log10(9))
    assert log10_tail(0, 0, 0.5) == 0


class Told(torch.nn.Module):
    """Gives what a table says for an image, by its first pixel."""

    def __init__(self, table):
        super().__init__()
        self.table = table
        self.eval()

    def forward(self, images):
        return torch.stack([self.table[round(each.flatten()[0].item(), 6)] for each in images])


def test_the_watermark_is_found_in_what_was_trained_on_it_and_not_elsewhere():
    defense, context = ready(share=0.2)
    some = images(300)
    clean = torch.softmax(context.model(some), dim=1).detach()
    told = defense(some, clean)
    rows = torch.cat([torch.arange(300), torch.arange(50)])  # some images twice
    transfer = TransferSet(some, rows, told[rows])
    keys = [round(each.flatten()[0].item(), 6) for each in some]
    stolen, innocent = (Told(dict(zip(keys, answers, strict=True))) for answers in (told, clean))
    count = int((told.argmax(dim=1) != clean.argmax(dim=1)).sum())
    found = defense.verify(stolen, transfer, context)
    assert found["dawn_watermarks"] == count > 40
    assert found["dawn_agreement"] == 1
    assert found["dawn_log10_p"] == pytest.approx(-count * math.log10(9))
    assert defense.verify(innocent, transfer, context) | {"dawn_agreement": 0.0, "dawn_log10_p": 0.0} == {
        "dawn_watermarks": count,
        "dawn_agreement": 0.0,
        "dawn_independent": 1 / 9,
        "dawn_log10_p": 0.0,
    }
    other = defense.verify(Tiny((1, 8, 8), 10).eval(), transfer, context)
    assert other["dawn_agreement"] < 0.4
    assert other["dawn_log10_p"] > -4
    undone = TransferSet(some, torch.arange(300), clean)  # a budget or a later part may have undone all of it
    assert defense.verify(stolen, undone, context)["dawn_watermarks"] == 0
    assert defense.verify(stolen, undone, context)["dawn_agreement"] is None
    assert defense.verify(innocent, undone, context)["dawn_log10_p"] == 0  # what is no watermark is no hit


def test_two_classes_are_no_evidence():
    defense, context = ready(2, share=1.0)
    some = images(20)
    clean = torch.softmax(context.model(some), dim=1).detach()
    transfer = TransferSet(some, torch.arange(20), defense(some, clean))
    found = defense.verify(context.model, transfer, context)
    assert (found["dawn_watermarks"], found["dawn_agreement"], found["dawn_log10_p"]) == (20, 0, 0)


def test_the_record_of_a_theft_says_what_was_found(tmp_path):
    record = run(cell(defense=Dawn(share=0.3), budget=100), Store(tmp_path), CPU)[0]
    assert 15 < record["dawn_watermarks"] < 50
    assert 0 <= record["dawn_agreement"] <= 1
    assert record["dawn_log10_p"] <= 0
    assert (record["strength_parameter"], record["strength"]) == ("share", 0.3)
    assert record["defended_accuracy"] < record["victim_accuracy"]
    chained = run(cell(defense=Chain(parts=[Dawn(share=0.3), Rounding(decimals=6)]), budget=100), Store(tmp_path), CPU)[
        0
    ]
    assert chained["dawn_watermarks"] == record["dawn_watermarks"]


@pytest.mark.parametrize("settings", [{"share": 2}, {"share": -0.1}, {"grid": 0}, {"levels": 1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(MadError, match=f"defense.{next(iter(settings))}"):
        Dawn(**settings)

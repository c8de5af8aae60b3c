"""What all answers have in common is found and taken off, and nothing is taken off answers that have nothing."""

import math

import pytest
import torch
from toys import CPU, cell

from mad.pipeline import run
from mad.recoveries import constant
from mad.recoveries.constant import Constant, common_mass
from mad.simplex import are_posteriors, l1
from mad.storage.store import Store
from mad.transfer import TransferSet

SURE = [1.0, 3.0, 8.0, 40.0]  # deviation of the logits: from nearly uniform to one-hot


def clean(sure, count=1500, classes=10):
    draw = torch.Generator().manual_seed(int(10 * sure) + classes)
    return torch.softmax(sure * torch.randn(count, classes, generator=draw), dim=1)


def pushed(rows, epsilon, shares=(0.6, 0.3, 0.1)):
    """Return MAD's answers: mass epsilon / 2 on one of three classes, a function of the image, but not its top."""
    draw = torch.Generator().manual_seed(5)
    order = torch.multinomial(torch.tensor(shares), len(rows), replacement=True, generator=draw)
    top = rows.argmax(dim=1)
    target = torch.where(order == top, (order + 1) % len(shares), order)
    room = 1 - rows.gather(1, target[:, None])
    step = (epsilon / 2 / room).clamp(max=1)
    return rows + step * (torch.eye(rows.shape[1])[target] - rows)


def learned(answers):
    return Constant().prepared(None, TransferSet(answers, torch.arange(len(answers)), answers))


@pytest.mark.parametrize("sure", [3.0, 8.0, 40.0])
@pytest.mark.parametrize("epsilon", [0.5, 0.95, 1.1, 1.6])
def test_mad_is_undone(sure, epsilon):
    before = clean(sure)
    answers = pushed(before, epsilon)
    recovery = learned(answers)
    assert recovery.columns()["constant_mass"] == pytest.approx(epsilon / 2, abs=1e-3)
    found = recovery(answers)
    assert l1(found, before).mean() < 0.08 * l1(answers, before).mean()
    assert (found.argmax(dim=1) == before.argmax(dim=1)).double().mean() > 0.94


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("sure", SURE)
def test_undefended_answers_stay_nearly_as_they_are(sure, classes):
    before = clean(sure, classes=classes)
    recovery = learned(before)
    assert recovery.columns()["constant_mass"] == 0
    found = recovery(before)
    assert are_posteriors(found)
    kept = found.argmax(dim=1) == before.argmax(dim=1)
    assert kept.double().mean() > (
        0.9 if sure == 1 else 0.98
    )  # a low quantile of flat answers is no small part of them
    assert l1(found, before).mean() < (0.12 if sure == 1 else 0.01)  # a low quantile of flat answers is no small one


def test_label_smoothing_is_no_poison():
    smooth = 0.1 / 10 + 0.9 * torch.eye(10)[torch.arange(1500) % 10]
    noisy = smooth * (1 + 0.1 * torch.rand(smooth.shape, generator=torch.Generator().manual_seed(0)))
    noisy /= noisy.sum(dim=1, keepdim=True)
    recovery = learned(noisy)
    assert recovery.columns()["constant_mass"] == 0
    assert torch.equal(recovery(noisy).argmax(dim=1), noisy.argmax(dim=1))


def test_a_fixed_posterior_that_is_mixed_in_is_taken_off():
    before, poison = clean(8.0), torch.softmax(torch.randn(10, generator=torch.Generator().manual_seed(1)), dim=0)
    answers = 0.4 * before + 0.6 * poison
    found = learned(answers)(answers)
    assert l1(found, before).mean() < 0.1 < l1(answers, before).mean() / 5
    low = torch.stack([answers[:, k].sort().values[round(constant.LOW * 1500) - 1] for k in range(10)])  # by definition
    left = (answers - low).clamp(min=0)
    assert torch.allclose(found, left / left.sum(dim=1, keepdim=True), atol=1e-5)


def mass_by_definition(answers):
    """Return the common mass by comparing each entry with each window."""
    rows = [[int(x / constant.BIN + constant.ROUNDING) for x in row] for row in answers.double().tolist()]
    count, width, best = len(rows), constant.WINDOW, (0.0, 0)
    for low in range(width, round(1 / constant.BIN) - 2 * width):
        above = sum(low <= x < low + width for row in rows for x in row) / count
        below = sum(low - width <= x < low for row in rows for x in row) / count
        lower = sum(low <= x < low + width // 2 for row in rows for x in row) / count
        if above <= 1.5 and below <= 0.15 * above and lower >= above / 2 and above - below > best[0] + 1e-12:
            best = above - below, low
    if best[0] < 0.5:
        return 0.0
    low, high = best[1] * constant.BIN, (best[1] + width) * constant.BIN
    there = sorted(x for row in answers.double().tolist() for x in row if low - constant.ROUNDING <= x < high)
    return there[max(1, round(constant.EDGE * len(there))) - 1]


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.1])
@pytest.mark.parametrize("sure", [1.0, 8.0])
def test_the_mass_by_definition(sure, epsilon):
    answers = pushed(clean(sure, count=60), epsilon)
    assert common_mass(answers.double()) == pytest.approx(mass_by_definition(answers), abs=1e-9)


def test_the_class_that_got_the_mass_by_definition():
    answers = pushed(clean(3.0, count=200), 0.5)
    recovery = learned(answers)
    mass, often, beyond = recovery._mass, recovery._often.tolist(), recovery._beyond
    for answer, found in zip(answers.tolist(), recovery(answers).tolist(), strict=True):
        able = [k for k in range(10) if answer[k] >= mass - constant.ROUNDING]
        score = {k: math.log(often[k]) - max(0, answer[k] - mass) / beyond for k in able}
        if not able:
            assert found == pytest.approx(answer, abs=1e-6)
            continue
        got = max(score, key=score.get)
        own = max(0, answer[got] - mass)
        expected = [own if k == got else answer[k] * (1 - own) / (1 - answer[got]) for k in range(10)]
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_degenerate_answers(classes):
    for rows in (torch.eye(classes), torch.full((5, classes), 1 / classes), torch.eye(classes)[:1]):
        found = learned(rows)(rows)
        assert are_posteriors(found)
        assert torch.allclose(found, rows, atol=1e-6)


def test_no_answer_depends_on_its_batch():
    answers = pushed(clean(3.0), 0.95)
    recovery = learned(answers)
    whole = recovery(answers)
    assert torch.equal(torch.cat([recovery(some) for some in answers.split(7)]), whole)


def test_a_cell(tmp_path):
    for epsilon, stolen in ((0.95, 0.9), (1.1, 0.9)):
        record = run(cell(epsilon, budget=150, recovery=Constant()), Store(tmp_path), CPU)[0]
        assert record["constant_mass"] == pytest.approx(epsilon / 2, abs=5e-3)
        assert record["stolen_accuracy"] > stolen
    assert run(cell(1.1, budget=150), Store(tmp_path), CPU)[0]["stolen_accuracy"] < 0.5

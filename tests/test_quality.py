"""The scores of answers beyond their top class, beside their plain definitions."""

import math

import pytest
import torch
from toys import CPU, Blobs, cell

from mad.attacks.activethief import ActiveThief
from mad.attacks.consistent import Consistent
from mad.attacks.copycat import Copycat
from mad.attacks.knockoff_nets import KnockoffNets
from mad.defenses import Undefended
from mad.pipeline import run
from mad.quality import BINS, normalized, outlier_auroc, quality
from mad.storage.store import Store


def drawn(rows=300, classes=12, seed=0):
    torch.manual_seed(seed)
    answers = torch.softmax(3 * torch.randn(rows, classes), dim=1)
    return answers, torch.softmax(torch.randn(rows, classes), dim=1), torch.multinomial(answers, 1).squeeze(1)


def plainly(answers, clean, labels):
    """The definitions, image by image."""
    nll = brier = top5 = 0.0
    bins, sure = [[] for _ in range(BINS)], []
    ranks = []
    for row, other, label in zip(answers.tolist(), clean.tolist(), labels.tolist(), strict=True):
        nll -= math.log(row[label])
        brier += sum((value - (place == label)) ** 2 for place, value in enumerate(row))
        top5 += label in sorted(range(len(row)), key=row.__getitem__)[-5:]
        top = max(row)
        bins[min(BINS - 1, int(top * BINS))].append((top, row.index(top) == label))
        sure.append((top, row.index(top) == label))
        first, second = (sorted(range(len(row)), key=each.__getitem__) for each in (row, other))
        squares = sum((first.index(k) - second.index(k)) ** 2 for k in range(len(row)))
        ranks.append(1 - 6 * squares / (len(row) * (len(row) ** 2 - 1)))
    ece = sum(abs(sum(top - right for top, right in each)) for each in bins)
    half = sorted(sure, reverse=True)[: len(sure) // 2]
    count = len(labels)
    return {
        "nll": nll / count,
        "brier": brier / count,
        "ece": ece / count,
        "top5_accuracy": top5 / count,
        "selective_accuracy": sum(right for _, right in half) / len(half),
        "ranking": sum(ranks) / count,
    }


def test_each_score_is_its_definition():
    for seed in range(3):
        found = quality(*drawn(seed=seed))
        assert found == pytest.approx(plainly(*drawn(seed=seed)), abs=1e-6)


def test_clean_answers_rank_as_they_are_and_ten_classes_have_no_top_5():
    answers, _, labels = drawn(classes=10)
    found = quality(answers, answers, labels)
    assert found["ranking"] == pytest.approx(1)
    assert found["top5_accuracy"] is None


def test_labels_only_and_flat_answers_have_scores():
    hard = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0])]
    labels = torch.tensor([0, 1, 2, 3, 1])
    found = quality(hard, hard, labels)
    assert found["ece"] == pytest.approx(0.2)
    assert found["brier"] == pytest.approx(0.4)
    assert found["nll"] == pytest.approx(-math.log(1e-7) / 5, rel=1e-4)
    flat = quality(torch.full((5, 4), 0.25), hard, labels)
    assert flat["ranking"] is None
    assert flat["nll"] == pytest.approx(math.log(4))
    right = quality(hard, hard, torch.tensor([0, 1, 2, 3, 0]))
    wrong = quality(hard, hard, torch.tensor([1, 2, 3, 0, 1]))
    assert (right["ece"], wrong["ece"]) == (0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_neither_the_order_of_images_nor_that_of_classes_counts_where_answers_tie(seed):
    answers, _, labels = drawn(seed=seed)
    hard = torch.nn.functional.one_hot(answers.argmax(dim=1), 12).float()
    tenths = (answers * 10).round()  # few values, so that answers tie, above and below the median
    for told in (hard, tenths / tenths.sum(dim=1, keepdim=True)):
        one = told.eq(told.amax(dim=1, keepdim=True)).sum(dim=1) == 1  # has a top class
        given, own = told[one], labels[one]
        found = quality(given, given, own)
        images, classes = torch.randperm(len(own)), torch.randperm(12)
        assert quality(given[images], given[images], own[images]) == pytest.approx(found, abs=1e-12)
        moved = given[:, classes]
        assert quality(moved, moved, classes.argsort()[own]) == pytest.approx(found, abs=1e-12)


def test_ties_count_as_a_fair_draw_in_the_mean():
    labels = torch.arange(12)
    flat = quality(torch.full((12, 12), 1 / 12), torch.eye(12), 0 * labels)
    assert flat["top5_accuracy"] == pytest.approx(5 / 12)
    wrong = torch.eye(12)[(labels + 1) % 12]
    assert quality(wrong, wrong, labels)["top5_accuracy"] == pytest.approx(4 / 11)  # one of five is wrong already
    two = torch.tensor([0.5, 0.5] + [0.0] * 10).expand(12, 12)
    assert quality(two, two, labels % 2)["top5_accuracy"] == 1
    sure = torch.tensor([0.9, 0.8, 0.8, 0.8, 0.5, 0.5])
    answers = torch.stack([sure, 1 - sure], dim=1)
    some = torch.tensor([0, 1, 0, 1, 0, 0])  # of the three kept ones, one is the first, two are of the three that tie
    assert quality(answers, answers, some)["selective_accuracy"] == pytest.approx((1 + 2 / 3) / 3)


def test_without_ties_the_scores_are_those_of_an_order_to_the_bit():
    from sklearn.metrics import top_k_accuracy_score

    answers, clean, labels = drawn(rows=301)
    found, shares = quality(answers, clean, labels), normalized(answers)
    assert found["top5_accuracy"] == top_k_accuracy_score(labels.numpy(), shares, k=5)
    right = shares.argmax(axis=1) == labels.numpy()
    assert found["selective_accuracy"] == right[(-shares.max(axis=1)).argsort(kind="stable")[:150]].mean()


def test_outliers_are_told_by_confidence():
    sure, unsure = torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([[0.5, 0.5], [0.85, 0.15]])
    assert outlier_auroc(sure, unsure) == 0.75  # of four pairs, three are in order
    assert outlier_auroc(unsure, sure) == 0.25
    assert outlier_auroc(sure, unsure[:0]) is None


@pytest.mark.parametrize("attack", [Copycat(600), Consistent(600), KnockoffNets(300), ActiveThief(300, rounds=2)])
def test_how_well_confidence_tells_the_pool_is_no_matter_of_the_thief(attack, tmp_path):
    def auroc(attack):
        made = cell(attack=attack, pool=Blobs(size=700), defense=Undefended())
        return run(made, Store(tmp_path), CPU)[0]["auroc_pool"]

    usual = auroc(KnockoffNets(600 if isinstance(attack, Copycat) else 300))
    assert auroc(attack) == usual
    assert usual != auroc(KnockoffNets(200))

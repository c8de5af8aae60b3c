"""The scores of answers beyond their top class, beside their plain definitions."""

import math

import pytest
import torch

from mad.quality import BINS, outlier_auroc, quality


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


def test_outliers_are_told_by_confidence():
    sure, unsure = torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([[0.5, 0.5], [0.85, 0.15]])
    assert outlier_auroc(sure, unsure) == 0.75  # of four pairs, three are in order
    assert outlier_auroc(unsure, sure) == 0.25
    assert outlier_auroc(sure, unsure[:0]) is None

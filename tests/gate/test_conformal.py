"""The gate's conformal test: its thresholds are those of the definition, and hold in finite samples."""

import math

import pytest
import torch

from mad.gate.conformal import RULES, groups_of, learned_weights, surprises, tails, thresholds


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def p_value(score, calibration):
    """Return the conformal p-value, by its definition."""
    return (1 + sum(each >= score for each in calibration)) / (len(calibration) + 1)


@pytest.mark.parametrize("alpha", [0, 0.02, 0.1, 0.5, 1])
@pytest.mark.parametrize("size", [0, 1, 9, 60])
def test_a_score_is_touched_if_its_p_value_is_at_most_alpha(size, alpha):
    calibration = (10 * drawn(size)).round()  # with ties
    limit = thresholds(calibration, torch.zeros(size, dtype=torch.int64), 1, alpha)[0]
    for score in range(-30, 30):
        assert (score > limit.item()) == (p_value(score, calibration.tolist()) <= alpha + 1e-12)


@pytest.mark.parametrize(("rule", "alpha"), [("learned", 0.02), ("learned", 0.2), ("harmonic", 0.05)])
def test_at_most_a_share_alpha_of_honest_queries_is_touched_over_random_splits(rule, alpha):
    found = -(torch.sigmoid(drawn(3000, 5) + drawn(3000, 1, seed=1))).log()  # dependent, and not uniform
    scores = RULES[rule](found, torch.full((5,), 0.2))
    classes = torch.arange(3000) % 3
    scores = scores + classes * scores.std()  # harder for one class than for another
    marginal, own = [], []
    for split in range(200):
        order = torch.randperm(3000, generator=torch.Generator().manual_seed(split))
        calibration, queries = order[:150], order[150:]
        for groups, shares in ((torch.zeros(3, dtype=torch.int64), marginal), (torch.arange(3), own)):
            limits, _ = thresholds(scores[calibration], groups[classes[calibration]], 3, alpha)
            touched = scores[queries] > limits[groups[classes[queries]]]
            by_class = [touched[classes[queries] == label].double().mean().item() for label in range(3)]
            shares.append([touched.double().mean().item(), *by_class])
    marginal, own = (torch.tensor(shares) for shares in (marginal, own))
    error = 4 * math.sqrt(alpha / 150 / 200)  # of a mean of 200 splits
    k = math.floor(alpha * 151) / 151
    assert marginal.mean(dim=0)[0] == pytest.approx(k, abs=error)
    assert (own.mean(dim=0) <= alpha + 2 * error).all()  # of each class, too
    assert marginal.mean(dim=0)[1:].max() > alpha + 2 * error  # which the threshold for all does not promise


def test_surprises_are_those_of_the_definition():
    honest, scores = drawn(2, 50), torch.linspace(-3, 6, 40).repeat(2, 1)
    ordered, start, length = tails(honest)
    found = surprises(scores, ordered, start, length)
    for part in range(2):
        own = sorted(honest[part].tolist())
        begin = own[45]
        mean = sum(each - begin for each in own[46:]) / 4
        for score, surprise in zip(scores[part].tolist(), found[part].tolist(), strict=True):
            slow = math.log(10) + (score - begin) / mean if score > begin else -math.log(p_value(score, own))
            assert surprise == pytest.approx(slow, rel=1e-3, abs=1e-5)


def test_rules_are_those_of_their_definitions():
    p = torch.rand(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.98 + 1e-3
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    found = {name: rule(-p.log(), weights) for name, rule in RULES.items()}
    for row, values in enumerate(p.tolist()):
        assert found["fisher"][row] == pytest.approx(-sum(map(math.log, values)))
        assert found["harmonic"][row] == pytest.approx(math.log(sum(1 / each for each in values)))
        assert found["bonferroni"][row] == pytest.approx(-math.log(min(values)))
        assert found["cauchy"][row] == pytest.approx(sum(math.tan((0.5 - each) * math.pi) for each in values) / 4)
        assert found["learned"][row] == pytest.approx(
            -sum(w * math.log(each) for w, each in zip(weights.tolist(), values, strict=True))
        )
        assert found["square"][row] == pytest.approx(sum(math.log(each) ** 2 for each in values))


@pytest.mark.parametrize("rule", RULES)
def test_a_more_surprising_query_never_scores_less(rule):
    found = 200 * torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    more = found + torch.tensor([1.0, 0, 0])
    weights = torch.tensor([0.5, 0.3, 0.2])
    before, after = (RULES[rule](each, weights) for each in (found, more))
    assert before.isfinite().all()
    assert (after >= before - 1e-3 * before.abs()).all()


def test_weights_go_where_shifts_show():
    honest, shifted = drawn(300, 3).abs(), drawn(400, 3, seed=1).abs()
    shifted[:, 1] += 3
    weights = learned_weights(honest, shifted)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert (weights >= 1 / 6 - 1e-6).all()
    assert weights.argmax() == 1
    assert weights[1] > 0.5


def test_classes_with_few_images_share_a_threshold():
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    assert groups_of(shares, 100, 0.1).tolist() == [1, 2, 0, 0]
    assert groups_of(shares, 200, 0.1).tolist() == [1, 2, 0, 0]  # the smallest takes another one along
    assert groups_of(torch.tensor([0.6, 0.4, 0.0]), 1000, 0.1).tolist() == [1, 0, 0]
    assert groups_of(shares, 10, 0.1).tolist() == [0, 0, 0, 0]
    assert groups_of(shares, 1000, 0.1).tolist() == [1, 2, 3, 4]
    assert groups_of(torch.zeros(4), 1000, 0.1).tolist() == [0, 0, 0, 0]

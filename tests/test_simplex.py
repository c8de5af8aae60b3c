"""Geometry of posteriors, against what is known."""

import pytest
import torch

from mad.simplex import are_posteriors, common_sum, entropy_in_bits, nearly_one, repair, rescaled, shrink


def test_entropy_is_in_bits_a_row():
    flat, sure = torch.full((3, 4), 0.25), torch.eye(4)
    assert entropy_in_bits(flat).tolist() == pytest.approx([2.0] * 3)
    assert entropy_in_bits(sure).tolist() == [0.0] * 4
    assert entropy_in_bits(torch.cat([flat[:2], sure[:2]])).mean().item() == pytest.approx(1)


def rows_of_all_kinds():
    random = torch.rand(60, 5, generator=torch.Generator().manual_seed(0))
    rows = random / random.sum(dim=1, keepdim=True)
    rows[::4] *= 1 + 4e-6  # near enough
    rows[1::4] *= 3
    rows[2, 0] = -0.2
    rows[6, 0] = torch.nan
    rows[10] = 0
    return rows, torch.eye(5)[torch.arange(60) % 5]


def test_what_is_done_to_a_row_does_not_depend_on_the_others():
    rows, clean = rows_of_all_kinds()
    whole, lost = repair(rows, clean)
    assert lost == 2
    assert torch.equal(whole, torch.cat([repair(*pair)[0] for pair in zip(rows.split(1), clean.split(1), strict=True)]))
    assert are_posteriors(whole, 1e-5)
    near = clean + 0.25 * (1 + torch.arange(60).view(-1, 1) * 1e-8) * (whole - clean) / (whole - clean).abs().amax()
    for epsilon in (0.1, 0.3, (near - clean).abs().sum(dim=1).median().item()):
        shrunk = shrink(near, clean, epsilon)
        each = [shrink(*pair, epsilon) for pair in zip(near.split(1), clean.split(1), strict=True)]
        assert torch.equal(shrunk, torch.cat(each))
        assert (shrunk - clean).abs().sum(dim=1).max() <= epsilon + 1e-6


@pytest.mark.parametrize("classes", [2, 10, 100, 150])
@pytest.mark.parametrize("decimals", [2, 3, 4])
def test_what_was_rounded_to_two_decimals_or_more_is_rescaled(classes, decimals):
    draw = torch.Generator().manual_seed(classes)
    for scale in (0.1, 1, 5):
        rows = torch.softmax(scale * torch.randn(500, classes, generator=draw, dtype=torch.float64), 1)
        rounded = (rows * 10**decimals).round() / 10**decimals
        for given in (rounded, rounded.float()):
            far = (given.double().sum(dim=1) - 1).abs() > 0.1 + 1e-3
            assert not far.any() or rescaled(given) is None  # as if all but the largest were cut
            assert (classes, decimals) in ((100, 2), (150, 2)) or not far.any()
            found = rescaled(given[~far])
            assert found is not None
            assert are_posteriors(found)


def test_sums_further_off_than_rounding_are_not_rescaled():
    for row in ([0.33, 0.33, 0.33], [0.34, 0.34, 0.33], [0.335, 0.335, 0.335], [0.33, 0.66], [0.33, 0.33, 0.32, 0]):
        assert nearly_one(torch.tensor([row])).all()
    # Rounding one number is off by half a decimal, and what became 0 was not less before.
    for row in ([0.33, 0.33, 0.32], [0.34, 0.34, 0.34], [0.5, 0.52, 0.0], [0.3232, 0.3331, 0.3312], [0.4, 0.4, 0.4]):
        assert not nearly_one(torch.tensor([row])).any()
    assert not nearly_one(torch.zeros(1, 1000)).any()
    assert rescaled(torch.tensor([[1.01, -0.01, 0.0]])) is None
    assert rescaled(torch.tensor([[float("nan"), 0.5, 0.5]])) is None


def test_a_common_sum_is_one_of_all_rows():
    rows = torch.softmax(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), 1)
    assert common_sum(rows * 100) == common_sum((rows * 100).round()) == 100
    assert common_sum(rows * 3) == pytest.approx(3)
    for none in (rows * torch.arange(1, 21).unsqueeze(1), rows - 0.1, rows[:0], rows * 0, rows / 0):
        assert common_sum(none) is None

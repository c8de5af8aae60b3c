"""Geometry of posteriors, against what is known."""

import pytest
import torch

from mad.simplex import are_posteriors, entropy_in_bits, repair, shrink


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

"""Geometry of posteriors, against what is known."""

import pytest
import torch

from mad.simplex import entropy_in_bits


def test_entropy_is_in_bits_a_row():
    flat, sure = torch.full((3, 4), 0.25), torch.eye(4)
    assert entropy_in_bits(flat).tolist() == pytest.approx([2.0] * 3)
    assert entropy_in_bits(sure).tolist() == [0.0] * 4
    assert entropy_in_bits(torch.cat([flat[:2], sure[:2]])).mean().item() == pytest.approx(1)

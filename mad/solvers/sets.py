"""Tables of sets of classes, which ``corners`` goes through; each is made once."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Sets(NamedTuple):
    """All S subsets of m classes, small ones first.

    Args:
        member: whether each class is in each set, as numbers (S, m).
        size: the number of its classes, (S,).
        apart: whether two sets have no class in common, bool (S, S).
    """

    member: Tensor
    size: Tensor
    apart: Tensor


class Falls(NamedTuple):
    """All F ways in which some of m classes fall, each emptied or tied with the top class.

    Args:
        empty: whether each class is emptied, as numbers (F, m).
        tied: whether it is tied.
        rest: whether neither.
        other: the first class that is neither, int64 (F,); m if there is none.
        free: which ``Sets`` have no class that falls, bool (F, S).
    """

    empty: Tensor
    tied: Tensor
    rest: Tensor
    other: Tensor
    free: Tensor


@functools.lru_cache(maxsize=32)
def sets(classes: int, dtype: torch.dtype, device: torch.device) -> Sets:
    """Return all subsets of a number of classes."""
    member = torch.arange(2**classes).unsqueeze(1) >> torch.arange(classes) & 1
    member = member[member.sum(dim=1).argsort(stable=True)]
    return Sets(member.to(device, dtype), member.sum(dim=1).to(device, dtype), (member @ member.T == 0).to(device))


@functools.lru_cache(maxsize=64)
def falls(classes: int, large: int, dtype: torch.dtype, device: torch.device) -> Falls:
    """Return all ways in which classes fall if only the first ``large`` may be tied then."""
    base = torch.tensor([3] * large + [2] * (classes - large))
    weight = torch.cat([torch.ones(1, dtype=torch.long), base.cumprod(0)[:-1]])
    digit = torch.arange(int(base.prod())).unsqueeze(1) // weight % base
    rest, empty, tied = (digit == value for value in range(3))
    other = torch.where(rest, torch.arange(classes), classes).amin(dim=1)
    free = (~rest).long() @ sets(classes, torch.long, torch.device("cpu")).member.T == 0
    empty, tied, rest = (each.to(device, dtype) for each in (empty, tied, rest))
    return Falls(empty, tied, rest, other.to(device), free.to(device))

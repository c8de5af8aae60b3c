"""Comparing numbers with limits, so that rounding does not decide: 0.99 - 0.98 is more than 0.01 by some 1e-17."""

from __future__ import annotations

from typing import Any

DOUBLE = 1e-9  # a slack above what rounding does to shares and percents, and below what one image of a split is
SINGLE = 1e-6  # what rounding may do to numbers that were computed as float32, as a share of them


def at_most(value: Any, limit: Any, slack: float = DOUBLE) -> Any:
    """Return whether a number, or each of a column or array, is at most a limit, but for rounding."""
    return value <= limit + slack


def under(value: Any, limit: Any, slack: float = DOUBLE) -> Any:
    """Return whether a number, or each of a column or array, is below a limit by more than rounding."""
    return value < limit - slack

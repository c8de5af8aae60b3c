"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PASS, NOTE, FAIL = "pass", "note", "fail"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        verdict: ``pass``; ``note``, of what its author should know; or ``fail``, of a broken promise.
        reason: one line.
        numbers: what was measured, by name.
        check: the name of the check.
    """

    verdict: str
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)
    check: str = ""


def passed(reason: str, **numbers: Any) -> Finding:
    """Return that a promise is kept."""
    return Finding(PASS, reason, numbers)


def noted(reason: str, **numbers: Any) -> Finding:
    """Return something that is allowed and that the author should know."""
    return Finding(NOTE, reason, numbers)


def failed(reason: str, **numbers: Any) -> Finding:
    """Return that a promise is broken."""
    return Finding(FAIL, reason, numbers)

"""Take off what a defense mixes into every answer alike: a fixed mass on one class, or a fixed posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mad.knowledge import Knowledge
from mad.recoveries.base import Recovery
from mad.schema import Column
from mad.transfer import TransferSet

BIN, WINDOW = 0.0025, 8  # probabilities are counted in bins, and a window is that many of them: 0.02
SHARE = 0.5  # of the answers that must have one entry in the window, beyond those that have one in the window below
BELOW = 0.15  # the most entries in the window below, as a share of those in the window
INFORMATIVE = 0.25  # how sure the typical answer is once the mass is off: 0 as the uniform posterior, 1 one-hot
EDGE = 0.02  # quantile of a window's entries that is its edge
LOW = 0.05  # quantile of each class's probabilities that all answers are taken to have in common
ROUNDING = 5e-4
ROUNDS = 10


@dataclass
class Constant(Recovery):
    """Estimate what all answers have in common, and take it off.

    MAD answers with (1 - a) y + a e_c, and y_c + epsilon / 2 = answer_c: it puts the same mass, epsilon / 2, on one
    class. With a random surrogate, that class is one of a few, whatever the image. No answer's entry for that class is
    then below the mass, and most are just above, since a class other than the top one has little probability of its
    own: over all answers, the entries have a sharp lower edge. This finds the edge, if there is one, and then for each
    answer the class that most likely got the mass: one that has it, has little beyond it, and got it often in other
    answers. y follows exactly from that class and the mass.

    Where there is no such edge, each class's ``LOW`` quantile is taken off instead: little for undefended answers,
    and more for a defense that flattens all of them.

    Answers of a victim without a defense have no edge: their entries gather at 0, below the first window, and at 1,
    above the last one. It needs no knowledge of the defense and has no parameter. With two classes, and with three that
    are not sure, it finds no mass: what is left of an answer then says too little.
    """

    name = "constant"
    schema = (
        Column("constant_mass", "number", "0 to 1", "the mass on one class that all answers have; 0 if none was found"),
    )

    def prepare(self, adversary: Knowledge, transfer: TransferSet) -> None:
        """Estimate the mass, how often each class gets it, and what is usual beyond it; or the low quantiles."""
        answers = transfer.answers.double()
        self._mass = common_mass(answers)
        self._low = answers.kthvalue(max(1, round(LOW * len(answers))), dim=0).values
        if self._mass:
            self._fit(answers)
            typical = self._without_mass(answers).amax(dim=1).median().item()
            flat = 1 / max(1, answers.shape[1] - 1)
            if typical < flat + INFORMATIVE * (1 - flat):  # the mass was the answer, and what is left is nothing
                self._mass = 0.0

    def columns(self) -> dict[str, Any]:
        """Return the mass that was found."""
        return {"constant_mass": self._mass}

    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return what the clean posteriors are thought to have been, (B, K)."""
        rows = answers.double()
        if self._mass:
            return self._without_mass(rows).to(answers.dtype)
        left = (rows - self._low.to(rows.device)).clamp(min=0)
        total = left.sum(dim=1, keepdim=True)
        return torch.where(total > ROUNDING, left / total.clamp(min=ROUNDING), rows).to(answers.dtype)

    def _fit(self, answers: Tensor) -> None:
        """Estimate, by a few rounds of expectation and maximization, how often a class got the mass."""
        self._often = torch.full_like(answers[0], 1 / answers.shape[1])
        self._beyond = 2 * BIN
        for _ in range(ROUNDS):
            chance = torch.softmax(self._scores(answers), dim=1).nan_to_num(0)  # NaN: no class has the mass
            often = chance.sum(dim=0) + 1
            beyond = (chance * (answers - self._mass).clamp(min=0)).sum() / chance.sum().clamp(min=1)
            self._often, self._beyond = often / often.sum(), max(ROUNDING / 5, beyond.item())

    def _scores(self, answers: Tensor) -> Tensor:
        """Return the log-likelihood (B, K) that a class got the mass, up to a constant; -inf if it has less.

        What it has beyond the mass is taken to be exponentially distributed.
        """
        beyond = answers - self._mass
        score = self._often.to(answers.device).log() - beyond.clamp(min=0) / self._beyond
        return score.masked_fill(beyond < -ROUNDING, -torch.inf)

    def _without_mass(self, answers: Tensor) -> Tensor:
        """Return the answers (B, K) without the mass; those in which no class has it stay."""
        score, got = self._scores(answers).max(dim=1, keepdim=True)
        own = (answers.gather(1, got) - self._mass).clamp(min=0)  # y_c, and the others keep their proportions
        others = answers.scatter(1, got, 0)
        total = others.sum(dim=1, keepdim=True)
        found = (others * (1 - own) / total.clamp(min=ROUNDING)).scatter(1, got, own)
        return torch.where(score.isfinite() & (total > ROUNDING), found / found.sum(dim=1, keepdim=True), answers)


def common_mass(answers: Tensor) -> float:
    """Return the mass, in (0, 1), that one class of nearly every answer (N, K) has at least; 0 if there is none.

    It is a lower edge of all entries: at least ``SHARE`` of the answers have one entry in the window above it, more of
    them in the lower half of the window, and few have any in the window below.
    """
    place = (answers / BIN + ROUNDING).long().clamp(max=round(1 / BIN) - 1)
    entries = torch.bincount(place.flatten(), minlength=round(1 / BIN)) / len(answers)
    until = torch.cat([torch.zeros(1, dtype=entries.dtype, device=entries.device), entries.cumsum(dim=0)])
    # No window at 0, where the entries of a sure victim are, and none at 1, where its top classes are.
    start = torch.arange(WINDOW, len(entries) - 2 * WINDOW, device=entries.device)
    above, below = until[start + WINDOW] - until[start], until[start] - until[start - WINDOW]
    lower = until[start + WINDOW // 2] - until[start]
    sharp = (above <= 1 + SHARE) & (below <= BELOW * above) & (lower >= above / 2)
    rise = torch.where(sharp, above - below, 0)
    best = int(rise.argmax())
    if rise[best] < SHARE:
        return 0.0
    low = (WINDOW + best) * BIN
    there = answers[(answers >= low - ROUNDING) & (answers < low + WINDOW * BIN)]
    return there.kthvalue(max(1, round(EDGE * len(there)))).values.item()

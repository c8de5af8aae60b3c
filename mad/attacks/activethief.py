"""ActiveThief (Pal et al., AAAI 2020): in rounds, query the images of a pool from which a substitute learns most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import Attack, Stolen, TransferSet, ask, drawn
from mad.attacks.deepfool import distances
from mad.datasets import Images
from mad.errors import check_choice, check_number
from mad.schema import Column
from mad.seeds import generator
from mad.simplex import entropy_in_bits
from mad.training import Trainer, logits_of

STRATEGIES = ("uncertainty", "k_center", "dfal", "dfal_k_center")
CENTERS = 512  # whose distances to all candidates are computed at once


@dataclass(frozen=True)
class ActiveThief(Attack):
    """Query random images first; then, in rounds, those of the pool that a substitute selects.

    After each round a new substitute, of the knockoff's architecture, is trained from scratch on all answers so far. Of
    the images that were not asked about, the strategy selects

    - ``uncertainty``: those whose posterior, by the substitute, has the highest entropy;
    - ``k_center``: one after another the image whose posterior is farthest (L2) from those of all images that were
      asked about or selected before (greedy k-center, Sener and Savarese, ICLR 2018);
    - ``dfal``: those that the smallest perturbation moves to another class (DeepFool active learning, Ducoffe and
      Precioso, 2018; see ``mad.attacks.deepfool``);
    - ``dfal_k_center``: by ``k_center`` among the ``shortlist`` images that ``dfal`` ranks first.

    The knockoff is trained at the end on all answers, by its own recipe. The paper trains for up to 1,000 epochs, stops
    early by the F1 score on a fifth of the budget that it asks about for this alone, and steals the last substitute.
    Here recipes have fixed lengths, and all answers are learned from.

    Args:
        strategy: one of ``uncertainty``, ``k_center``, ``dfal`` and ``dfal_k_center``.
        start: share of the budget that is asked about at random first, in (0, 1].
        rounds: rounds after that, which share the rest of the budget evenly; fewer, if rounding up spends it before.
        epochs: passes of a substitute over the transfer set; no more than the knockoff's.
        min_steps: the least number of steps of a substitute; no more than the knockoff's.
        candidates: the most images that a round selects from, drawn at random; None, as published, for all of the pool.
        deepfool: images that ``dfal`` perturbs, which takes about as long as 30 forward passes each: those whose two
            likeliest classes have the closest logits, and at least as many as it keeps; None, as published, for all.
        shortlist: images that ``dfal_k_center`` keeps for k-center; None for as many as the budget.
    """

    name = "activethief"
    schema = (Column("round_queries", "series", "queries", "how many images each round asked about"),)
    strategy: str = "k_center"
    start: float = 0.1
    rounds: int = 10
    epochs: int = 5
    min_steps: int = 300
    candidates: int | None = 10_000
    deepfool: int | None = 2000
    shortlist: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("attack.strategy", self.strategy, STRATEGIES)
        check_number("attack.start", self.start, 1e-9, 1)
        for name, least in (("rounds", 1), ("epochs", 1), ("min_steps", 0)):
            check_number(f"attack.{name}", getattr(self, name), least, whole=True)
        for name in ("candidates", "deepfool", "shortlist"):
            if getattr(self, name) is not None:
                check_number(f"attack.{name}", getattr(self, name), 1, whole=True)

    @property
    def amended(self) -> str | None:
        """As of every attack; and DeepFool once ranked images first that it could not move."""
        ranked = "images that nothing moves are last" if self.strategy.startswith("dfal") else None
        return "; ".join(filter(None, [super().amended, ranked])) or None

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the budget round by round; a run that was killed goes on after its last round."""
        assert pool is not None
        budget, order = api.budget or 0, drawn(pool, adversary, None)
        first = max(1, round(self.start * budget))
        share = -(-(budget - first) // self.rounds)
        found = adversary.resume(api) or {"rows": order[:0], "answers": torch.zeros(0, adversary.classes), "asked": []}
        rows, answers, asked = found["rows"], found["answers"], found["asked"]
        while len(rows) < budget:
            new, turn, count = order[:first], len(asked), min(share, budget - len(rows))
            if turn:
                known, trainer = TransferSet(pool, rows, answers), self.trainer(adversary.knockoff.trainer)
                substitute = adversary.train(known, f"substitute {turn}", trainer)
                left = self.possible(order, rows, count, turn, adversary.seed)
                new = self.selected(substitute, known, left, count, budget, adversary)
            rows, answers = torch.cat([rows, new]), torch.cat([answers, ask(api, pool, new)])
            asked = [*asked, len(new)]
            adversary.save(api, rows=rows, answers=answers, asked=asked)
        return Stolen(transfer=TransferSet(pool, rows, answers), columns={"round_queries": asked})

    def trainer(self, final: Trainer) -> Trainer:
        """Return the recipe of a substitute: the knockoff's, with no more than ``epochs`` and ``min_steps``."""
        return final.but(epochs=min(self.epochs, final.epochs), min_steps=min(self.min_steps, final.min_steps))

    def possible(self, order: Tensor, rows: Tensor, count: int, turn: int, seed: int) -> Tensor:
        """Return the rows, int64 (N,), that a round selects ``count`` from: not asked about, at most ``candidates``."""
        left = order[~torch.isin(order, rows)]
        if self.candidates is None or len(left) <= self.candidates:
            return left
        some = torch.randperm(len(left), generator=generator(seed, f"candidates {turn}"))
        return left[some[: max(count, self.candidates)]]

    def selected(
        self, substitute: nn.Module, known: TransferSet, left: Tensor, count: int, budget: int, adversary: Adversary
    ) -> Tensor:
        """Return the rows, int64 (count,), that the strategy selects among ``left``."""
        pool, device = known.images, adversary.device
        logits = logits_of(substitute, pool, device, left)
        if self.strategy.startswith("dfal"):
            kept = count if self.strategy == "dfal" else max(count, self.shortlist or budget)
            if self.deepfool is not None:
                first, second = logits.topk(2, dim=1).values.T
                left = left[(first - second).argsort(stable=True)[: max(kept, self.deepfool)]]
            left = left[distances(substitute, pool, left, device).argsort(stable=True)[:kept]]
            if self.strategy == "dfal":
                return left
            logits = logits_of(substitute, pool, device, left)
        posteriors = torch.softmax(logits, dim=1)
        if self.strategy == "uncertainty":
            return left[entropy_in_bits(posteriors).argsort(descending=True, stable=True)[:count]]
        asked = torch.softmax(logits_of(substitute, pool, device, known.rows), dim=1)
        return left[farthest(posteriors, asked, count)]


def farthest(points: Tensor, centers: Tensor, count: int) -> Tensor:
    """Select points by greedy k-center: one after another the one that is farthest from all centers and selected ones.

    Only each point's distance to the nearest center is kept, never a matrix of all pairs.

    Args:
        points: (N, D).
        centers: (M, D), M at least 1.
        count: at most N.

    Returns:
        The selected rows, int64 (count,), in their order; no row twice.
    """
    exact = "donot_use_mm_for_euclid_dist"  # a product of matrices is inexact for points that are close
    nearest = torch.full((len(points),), torch.inf)
    for some in centers.split(CENTERS):
        nearest = torch.minimum(nearest, torch.cdist(points, some, compute_mode=exact).amin(dim=1))
    rows = torch.empty(count, dtype=torch.int64)
    for place in range(count):
        row = rows[place] = nearest.argmax()
        nearest = torch.minimum(nearest, torch.cdist(points, points[row].unsqueeze(0), compute_mode=exact).squeeze(1))
        nearest[row] = -1.0  # below every distance
    return rows

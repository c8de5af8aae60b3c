"""Gradient redirection (GRAD^2): answers that push the adversary's weights where the defender wants them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad import solvers
from mad.context import AbsentContext
from mad.datasets import Pool, batches, to_unit_range
from mad.defenses.base import Context, Defense
from mad.defenses.distilled import DistilledSurrogate
from mad.defenses.mad import WithTheta
from mad.defenses.surrogates import Surrogate
from mad.directional import Directional
from mad.errors import MadError, check_choice, check_number
from mad.schema import Column
from mad.seeds import generator
from mad.solvers.metric import times
from mad.victim import Victim

DIRECTIONS = ("all_ones", "min_inner_product", "watermark", "random")
NO_DIRECTION = 1e-6  # answers this near to the surrogate's have no clean gradient but rounding error
PROBES = 8  # images on which a direction is tried


@dataclass
class GradientRedirection(Defense):
    """Perturb each answer so that training on it moves the adversary's weights in a direction z.

    The method is GRAD^2 of Mazeika, Li and Forsyth (ICML 2022).

    An adversary that trains on an answer q moves its weights along G^T q, where the rows of G are the gradients of its
    log-posteriors; the gradients of a surrogate stand in for them. The answer maximizes <G^T q, z> = <q, G z> over the
    simplex and the L1 ball, a linear program whose exact solution is one sort (``solvers.linear``). The K numbers G z
    of every image of a batch come from one pass (``mad.directional``); they depend neither on the answers nor on
    epsilon, so that all strengths of a sweep share them.

    Other than in MAD, a direction that is the same for all images makes the pushes of all queries add up. Directions
    over the last layer alone are useless here: the sum of its weights' derivatives is the same for every class.

    Args:
        epsilon: L1 budget in [0, 2]. From 1 on, the top class of every answer may change.
        surrogate: makes the network whose gradients stand in for the adversary's.
        direction: ``all_ones``, the paper's choice; ``min_inner_product``, against the clean gradient of each image,
            z = -G^T y, which resembles MAD; ``watermark``, up the likelihood of secret labels of secret images, which
            shows later whether a network was stolen; ``random``, normal numbers drawn from the cell's seed.
        triggers: number of secret images of the watermark.
        outliers: the pool that the secret images are drawn from; None for noise.
    """

    name = "gradient_redirection"
    needs_epsilon = True
    schema = (Column("surrogate_pool", "text", "", "the defender's own images, which a distilled surrogate learned"),)
    epsilon: float
    surrogate: Surrogate = field(default=DistilledSurrogate())
    direction: str = "all_ones"
    triggers: int = 100
    outliers: Pool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("defense.direction", self.direction, DIRECTIONS)
        check_number("defense.triggers", self.triggers, 1, whole=True)
        if self.outliers is not None and self.direction != "watermark":
            raise MadError(
                f"defense.outliers are images of direction=watermark, got direction={self.direction}: leave them out"
            )

    def check(self, victim: Victim) -> None:
        """Raise MadError if the surrogate does not fit the victim."""
        self.surrogate.check(victim)

    def columns(self, context: Context) -> dict[str, Any]:
        """Return the name of the pool that the surrogate was trained on, if there is one."""
        return {"surrogate_pool": getattr(getattr(self.surrogate, "pool", None), "name", None)}

    def prepare(self, context: Context) -> None:
        """Build the surrogate and the direction.

        Raises:
            MadError: if the direction changes no posterior of the surrogate.
        """
        network = self.surrogate.ready(context)
        if self.direction == "min_inner_product":
            about = ["all", False, self.surrogate, context.victim, context.seed]  # as MAD keeps it, which shares it
            self._scores = context.cached(WithTheta(network), about)
            return
        images = torch.rand(PROBES, *context.victim.dataset.shape, generator=generator(context.seed, "probes"))
        images = images.to(context.device)
        scores = Directional(network, images, self._direction(network, context))
        if not isinstance(context, AbsentContext) and not scores(images).any():
            raise MadError(
                f"defense.direction={self.direction} changes no posterior of surrogate {self.surrogate.name}: take a "
                "defense/surrogate/architecture of more than one layer, or direction=min_inner_product"
            )
        about = [self.name, self.direction, self.triggers, self.outliers]
        self._scores = context.cached(scores, [*about, self.surrogate, context.victim, context.seed])

    def _direction(self, network: nn.Module, context: Context) -> dict[str, Tensor] | None:
        """Return the direction by the name of each parameter; None for all ones."""
        if self.direction == "all_ones":
            return None
        parameters = {name: value.detach() for name, value in network.named_parameters()}
        if self.direction == "random":
            draw = generator(context.seed, "direction")
            return {name: torch.randn(value.shape, generator=draw).to(value) for name, value in parameters.items()}
        if isinstance(context, AbsentContext):  # it is loaded afterwards
            return {name: torch.zeros_like(value) for name, value in parameters.items()}
        images, labels = self.watermark(context)
        leaves = {name: value.requires_grad_() for name, value in parameters.items()}
        with torch.enable_grad():
            logits = torch.func.functional_call(network, leaves, (images.to(context.device),))
            loss = F.cross_entropy(logits, labels.to(context.device))
            slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return {name: -slope for name, slope in zip(leaves, slopes, strict=True)}

    def watermark(self, context: Context) -> tuple[Tensor, Tensor]:
        """Return the secret images, (triggers, C, H, W) in [0, 1], and labels, int64 (triggers,), of a cell's seed.

        A network that was stolen from this defense should give the labels a higher probability than others do.
        """
        draw = generator(context.seed, "watermark")
        shape, classes = context.victim.dataset.shape, context.victim.dataset.classes
        labels = torch.randint(classes, (self.triggers,), generator=draw)
        if self.outliers is None:
            return torch.rand(self.triggers, *shape, generator=draw), labels
        pool = context.images(self.outliers)
        rows = torch.randperm(len(pool), generator=draw)[: self.triggers]
        (images,) = batches(pool, rows, len(rows), torch.device("cpu"))
        return to_unit_range(images), labels[: len(rows)]

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the posteriors (B, K) that push furthest in the direction."""
        scores = self._scores(images)
        if self.direction == "min_inner_product":
            scores = against(scores, clean)
        # Where no answer pushes anywhere, the mass goes to the least likely class, as in MAD.
        undirected = (scores == 0).all(dim=1, keepdim=True)
        return solvers.linear(clean, torch.where(undirected, -clean, scores), self.epsilon)


def against(found: Tensor, y: Tensor) -> Tensor:
    """Return G z for z = -G^T y, (B, K), but for a constant of each row, which moves no answer.

    With Theta = J J^T of the logits and u = y - p, G z = -Theta u + <p, Theta u>. It is zero where y = p.

    Args:
        found: logits and Theta side by side, (B, K + K^2); see ``WithTheta``.
        y: clean posteriors (B, K).
    """
    classes = y.shape[1]
    u = y - torch.softmax(found[:, :classes], dim=1)
    slope = times(found[:, classes:].unflatten(1, (classes, classes)), u)
    return -slope.masked_fill(u.abs().amax(dim=1, keepdim=True) <= NO_DIRECTION, 0.0)

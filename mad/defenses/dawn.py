"""DAWN: a watermark in a few answers, which a model that is trained on them learns (Szyller et al., ACM MM 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.datasets import batch_limit, batches, to_unit_range
from mad.defenses.base import Context, Defense
from mad.defenses.random_noise import keyed_uniform
from mad.errors import check_number
from mad.schema import Column
from mad.seeds import derive
from mad.training import EVALUATION_BATCH
from mad.transfer import TransferSet


@dataclass
class Dawn(Defense):
    """Answer a small share of images with a wrong class on top; a model that gives these answers, too, was stolen.

    A hash of a secret key and of the image's code chooses the images and, for each, the class that gets the top
    probability; the other probabilities are permuted. So an image gets the same answer whenever anyone asks about it,
    and nothing has to be remembered. The code is the image reduced to ``grid`` x ``grid`` blocks, each rounded to one
    of ``levels`` grays: small changes of an image leave most codes as they are. The paper takes the victim's features,
    cut at their medians, in place of blocks.

    Ownership is verified on the transfer set: on how many of the watermark's images the stolen model gives the class
    that the thief was told. An image counts if that class is not the model's own (a budget, or later parts of a chain,
    may have undone the watermark), and images of one code count once. A model that was not trained on these answers
    gives the told class, drawn by the key among K - 1, with a probability of at most 1 / (K - 1); the p-value is that
    of as many hits or more under it. The paper counts with 1 / K. With two classes there is no evidence.

    Args:
        epsilon: an additional L1 budget in [0, 2]; below about 1 it undoes the watermark on sure answers. None for no
            limit.
        share: the share of images that are answered wrongly, in [0, 1]. The paper has 0.005 and less.
        grid: blocks along each side of an image.
        levels: grays of a block, at least 2.
    """

    name = "dawn"
    strength_parameter = "share"
    schema = (
        Column("dawn_watermarks", "whole number", "images", "of the thief's queries, how many carry the watermark"),
        Column("dawn_agreement", "number", "share", "of these, on how many the stolen model gives the told class"),
        Column("dawn_independent", "number", "share", "the chance of one such hit for a model that was not stolen"),
        Column("dawn_log10_p", "number", "log10, at most 0", "of the p-value of so many hits of such a model"),
    )
    epsilon: float | None = None
    share: float = 0.005
    grid: int = 8
    levels: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.share", self.share, 0, 1)
        check_number("defense.grid", self.grid, 1, whole=True)
        check_number("defense.levels", self.levels, 2, 256, whole=True)

    def prepare(self, context: Context) -> None:
        """Draw the secret key."""
        self._key = derive(context.seed, "dawn")

    def draws(self, images: Tensor, width: int) -> Tensor:
        """Return pseudorandom numbers in [0, 1), float64 (B, width), a function of the key and of each image's code."""
        size = (min(self.grid, images.shape[2]), min(self.grid, images.shape[3]))
        blocks = F.adaptive_avg_pool2d(images.float().clamp(0, 1), size)
        return keyed_uniform((blocks * (self.levels - 1)).round(), width, self._key)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the posteriors, permuted for the watermark's images so that another class is on top."""
        drawn = self.draws(images, 1 + clean.shape[1])
        marked = drawn[:, 0] < self.share
        if not marked.any() or clean.shape[1] < 2:
            return clean
        answers = clean.clone()
        answers[marked] = permuted(clean[marked], drawn[marked, 1:])
        return answers

    def verify(self, network: nn.Module, transfer: TransferSet, context: Context) -> dict[str, Any]:
        """Return how much of the watermark a network has, and how probable that is for one that was not stolen."""
        size = batch_limit(EVALUATION_BATCH, transfer.images.shape[1:])
        told = transfer.answers.argmax(dim=1).to(context.device).split(size)
        seen, watermarks, hits = set[tuple[float, ...]](), 0, 0
        for batch, answers in zip(batches(transfer.images, transfer.rows, size, context.device), told, strict=True):
            images = to_unit_range(batch)
            drawn = self.draws(images, 3)
            marked = (drawn[:, 0] < self.share).nonzero().squeeze(1)
            new = []
            for row, code in zip(marked.tolist(), map(tuple, drawn[marked].tolist()), strict=True):
                if code not in seen:
                    seen.add(code)
                    new.append(row)
            if new:
                some, given = images[new], answers[new]
                with torch.no_grad():
                    wrong = context.model(some).argmax(dim=1) != given
                    hit = network(some).argmax(dim=1) == given
                watermarks += int(wrong.sum())
                hits += int((wrong & hit).sum())
        chance = 1 / max(1, transfer.answers.shape[1] - 1)
        return {
            "dawn_watermarks": watermarks,
            "dawn_agreement": hits / watermarks if watermarks else None,
            "dawn_independent": chance,
            "dawn_log10_p": log10_tail(hits, watermarks, chance),
        }


def permuted(rows: Tensor, drawn: Tensor) -> Tensor:
    """Return posteriors (B, K), K > 1, whose largest entry is moved to another class and whose others are permuted.

    Args:
        rows: the posteriors.
        drawn: numbers in [0, 1), (B, K), that decide: the class with the largest one, the old top class left out, gets
            the top; the other entries, in order of their classes, go to the other classes in order of their numbers.
    """
    top = rows.argmax(dim=1, keepdim=True)
    target = drawn.scatter(1, top, -1.0).argmax(dim=1, keepdim=True)
    places = drawn.scatter(1, target, 2.0).argsort(dim=1)  # the target last
    order = torch.arange(rows.shape[1], dtype=drawn.dtype, device=rows.device).expand_as(drawn)
    sources = order.scatter(1, top, float(rows.shape[1])).argsort(dim=1)  # the top last
    return torch.zeros_like(rows).scatter(1, places, rows.gather(1, sources))


def log10_tail(hits: int, trials: int, chance: float) -> float:
    """Return log10 of the probability of at least ``hits`` in ``trials``, each with a probability ``chance``."""
    if hits <= 0 or chance >= 1:
        return 0.0
    k = torch.arange(hits, trials + 1, dtype=torch.float64)
    n = torch.tensor(float(trials), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    logs = ways + k * math.log(chance) + (n - k) * math.log1p(-chance)
    return min(0.0, float(logs.logsumexp(dim=0)) / math.log(10))

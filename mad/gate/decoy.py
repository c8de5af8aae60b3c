"""Decoys: answers that say nothing about the query, and look like honest ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mad.defenses.random_noise import keyed_uniform
from mad.seeds import derive, generator

COARSE = 7  # blocks along each side of the picture whose cell decides the class of a decoy
FINE, GRAYS = 8, 4  # blocks along each side, and grays, of the code that decides which answer of that class it is
ANCHORS, CELLS = 1024, 3  # an image's cell: the nearest of so many random directions, so many times
TURN = 0.3  # the most that a decoy is turned toward another honest answer of its class, so that no two are the same


class Decoys:
    """Keyed decoys from a bank of honest posteriors; copies of an image that differ little get the same one.

    The class of a decoy depends on the secret key and on the cell of the image's coarse picture, of which brightness
    and contrast are taken off; which honest answer of that class it is, on the key and a finer code. Given the image,
    a decoy is a draw from the bank: neither the victim's answer nor its features go into it.

    Args:
        bank: honest posteriors (M, K), in any order.
        seed: the secret.
        channels: channels of the images.
    """

    def __init__(self, bank: Tensor, seed: int, channels: int) -> None:
        top, classes = bank.max(dim=1)
        order = (classes + top.clamp(max=1 - 1e-6)).argsort()
        self._first = torch.searchsorted(classes[order], torch.arange(bank.shape[1] + 1, device=bank.device))
        self._classes = classes[order]
        logs = bank[order].clamp(min=1e-30).log()
        sums = logs.new_zeros(bank.shape[1], bank.shape[1]).index_add_(0, self._classes, logs)
        self._middle = sums / self._first.diff().clamp(min=1).unsqueeze(1)
        self._logs = logs - self._middle[self._classes]
        self._key = derive(seed, "gate")
        drawn = torch.randn(channels * COARSE * COARSE, ANCHORS * CELLS, generator=generator(seed, "gate's cells"))
        self._anchors = drawn.to(bank.device)

    def cells(self, images: Tensor) -> Tensor:
        """Return the cell of each image (B, C, H, W), numbers (B, CELLS)."""
        coarse = F.adaptive_avg_pool2d(images.float().clamp(0, 1), COARSE).flatten(1)
        coarse = coarse - coarse.mean(dim=1, keepdim=True)
        return (coarse @ self._anchors).view(len(images), CELLS, ANCHORS).argmax(dim=2).float()

    def codes(self, images: Tensor) -> Tensor:
        """Return a code of each image that tells images apart which are no near copies, numbers (B, N)."""
        blocks = F.adaptive_avg_pool2d(images.float().clamp(0, 1), FINE).flatten(1)
        return (blocks * (GRAYS - 1)).round()

    def names(self, images: Tensor) -> list[float]:
        """Return a number for each image, the same for copies of one code."""
        return keyed_uniform(self.codes(images), 1, self._key)[:, 0].tolist()

    def __call__(self, images: Tensor) -> Tensor:
        """Return decoys, posteriors (B, K), for images (B, C, H, W) in [0, 1]."""
        chosen = (keyed_uniform(self.cells(images), 1, self._key)[:, 0] * len(self._logs)).long()
        label = self._classes[chosen]
        first, size = self._first[label], self._first[label + 1] - self._first[label]
        drawn = keyed_uniform(self.codes(images), 3, self._key)
        one, other = (first + (drawn[:, number] * size).long() for number in (0, 1))
        turn = TURN * drawn[:, 2:].to(self._logs.dtype)
        mixed = (1 - turn) * self._logs[one] + turn * self._logs[other]
        spread = (turn.square() + (1 - turn).square()).sqrt()  # keeps the covariance of a class's answers
        found = mixed / spread
        lost = (self._middle[label] + found).argmax(dim=1) != label
        found[lost] = self._logs[one[lost]]
        return torch.softmax(self._middle[label] + found, dim=1)

"""Random noise on the posterior's logits, the paper's baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.base import Defense, Setting
from mad.errors import number
from mad.seeds import derive

EDGE = 1e-6  # logits of exact zeros and ones are infinite


@dataclass
class RandomNoise(Defense):
    """Add uniform noise to z = log(y / (1 - y)), map back and rescale; shrink to the L1 budget.

    The noise is a function of a secret key and of the image: asking twice brings the same answer, so averaging
    repeated queries removes nothing, and no answer depends on its batch.

    Args:
        epsilon: L1 budget in [0, 2].
        scale: noise is uniform in [-scale, scale], in logits. A sure answer's top logit is near 14, so 50 lets
            the budget decide how much changes; at 10 most test answers would hardly move.
    """

    name = "random_noise"
    epsilon: float | None
    scale: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("defense.scale", self.scale, 0)

    def prepare(self, setting: Setting) -> None:
        """Draw the secret key."""
        self._key = derive(setting.seed, "noise")

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors with noisy logits."""
        noise = keyed_uniform(images, clean.shape[1], self._key).to(clean.dtype)
        z = torch.logit(clean, eps=EDGE) + self.scale * (2 * noise - 1)
        return torch.sigmoid(z)


def keyed_uniform(images: Tensor, width: int, key: int) -> Tensor:
    """Return numbers in [0, 1), float64 (B, width), that depend on nothing but each image's pixels and the key."""
    bits = images.flatten(1).float().contiguous().view(torch.int32).long()
    place = torch.arange(bits.shape[1], device=bits.device)
    row = (mix(bits + mix(place + key)) * (2 * place + 1)).sum(dim=1, keepdim=True)
    words = mix(mix(row + key) + torch.arange(width, device=bits.device))
    return (words >> 11).bitwise_and(2**53 - 1).double() / 2**53


def mix(words: Tensor) -> Tensor:
    """Scramble int64 words (the finaliser of SplitMix64; products wrap)."""
    words = words + -7046029254386353131
    words = (words ^ (words >> 30 & (2**34 - 1))) * -4658895280553007687
    words = (words ^ (words >> 27 & (2**37 - 1))) * -7723592293110705685
    return words ^ (words >> 31 & (2**33 - 1))

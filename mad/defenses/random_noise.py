"""Random noise on the posterior's logits, a baseline of the paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad import simplex
from mad.defenses.base import Context, Defense
from mad.errors import check_choice, check_number
from mad.seeds import derive

EDGE = 1e-6  # with a budget, probabilities are clipped here: noise of +-scale moves no surer answer
NORMS = {"l1": 1, "l2": 2}


@dataclass
class RandomNoise(Defense):
    """Add uniform noise to the logits z = log(y / (1 - y)), map them back to probabilities and rescale.

    With an L1 budget the noise is symmetric, logits are clipped to those of 1e-6 and 1 - 1e-6, and the answer is
    shrunk to the budget. Without a budget it is the published form: non-negative noise in [0, 2 scale / K^(1/p)],
    projected onto the L_p ball of radius ``scale``, on unclipped logits. There a probability of exactly 0 or 1 does not
    change.

    The noise is a function of a secret key and of the image. The same image always gets the same answer, so averaging
    repeated queries removes no noise, and no answer depends on its batch. The published code draws new noise for each
    query; an adversary sees the difference only if it queries an image more than once.

    Args:
        epsilon: L1 budget in [0, 2]; None for the published form, whose strength is ``scale``.
        scale: size of the noise in logits. With a budget, noise is uniform in [-scale, scale]. The top logit of a sure
            answer is near 14, so with 50 the budget decides how much answers change; with 10 most test answers would
            hardly change. Without a budget, the radius of the ball.
        norm: norm of the ball, ``l1`` or ``l2``; not used with a budget.
    """

    name = "random_noise"
    epsilon: float | None
    scale: float = 50.0
    norm: str = "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.scale", self.scale, 0)
        check_choice("defense.norm", self.norm, tuple(NORMS))

    @property
    def version(self) -> int:  # type: ignore[override]
        """2 for the published form, whose version 1 clipped logits; 1 with a budget, whose answers have not changed."""
        return 2 if self.epsilon is None else 1

    @property
    def strength_parameter(self) -> str:  # type: ignore[override]
        """``epsilon`` with a budget, else ``scale``."""
        return "scale" if self.epsilon is None else "epsilon"

    def prepare(self, context: Context) -> None:
        """Draw the secret key."""
        self._key = derive(context.seed, "noise")

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the probabilities (B, K) of the noisy logits, rescaled and shrunk to the budget."""
        mass = self.noisy(images, clean)
        answer = mass / mass.sum(dim=1, keepdim=True)  # every row, however near its sum is to 1
        return answer if self.epsilon is None else simplex.shrink(answer, clean, self.epsilon, slack=0.0)

    def noisy(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the probabilities (B, K) of the noisy logits."""
        classes, z = clean.shape[1], torch.logit(clean, eps=EDGE)
        noise = keyed_uniform(images, classes, self._key)
        if self.epsilon is None:
            z = torch.logit(clean.double().clamp(max=1))  # infinite at 0 and 1
            noise = projected(2 * self.scale / classes ** (1 / NORMS[self.norm]) * noise, self.scale, self.norm)
        else:
            noise = (self.scale * (2 * noise - 1)).to(clean.dtype)
        return torch.sigmoid(z + noise).to(clean.dtype)


def projected(noise: Tensor, radius: float, norm: str) -> Tensor:
    """Return the Euclidean projection of non-negative noise (B, K) onto the L_p ball of a radius."""
    if norm == "l2":
        return noise * (radius / noise.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    # All entries fall by the same amount, not below zero, until they sum to the radius (Duchi et al., 2008).
    largest = noise.sort(dim=1, descending=True).values
    count = torch.arange(1, noise.shape[1] + 1, device=noise.device)
    fall = ((largest.cumsum(dim=1) - radius) / count).amax(dim=1, keepdim=True).clamp(min=0)
    return (noise - fall).clamp(min=0)


def keyed_uniform(images: Tensor, width: int, key: int) -> Tensor:
    """Return pseudorandom numbers in [0, 1), float64 (B, width), a function of each image's pixels and the key."""
    # + 0.0: -0.0 is 0.0
    bits = (images.flatten(1).float() + 0.0).contiguous().view(torch.int32).long()
    place = torch.arange(bits.shape[1], device=bits.device)
    row = (mix(bits + mix(place + key)) * (2 * place + 1)).sum(dim=1, keepdim=True)
    words = mix(mix(row + key) + torch.arange(width, device=bits.device))
    return (words >> 11).bitwise_and(2**53 - 1).double() / 2**53


def mix(words: Tensor) -> Tensor:
    """Hash int64 words with the finalizer of SplitMix64; products wrap around."""
    words = words + -7046029254386353131
    words = (words ^ (words >> 30 & (2**34 - 1))) * -4658895280553007687
    words = (words ^ (words >> 27 & (2**37 - 1))) * -7723592293110705685
    return words ^ (words >> 31 & (2**33 - 1))

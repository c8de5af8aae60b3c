"""The network that makes images from noise for the data-free attacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 8  # pixels a side that the first layer makes of images of 32 x 32, as published, and of all larger ones
SLOPE = 0.2
SPREAD = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))  # how often each tap of 3 reaches a doubled pixel


class Doubling(nn.Conv2d):
    """A 3 x 3 convolution of the image doubled by nearest neighbors: (B, C, H, W) to (B, out, 2 H, 2 W).

    Of the 9 pixels under a kernel at most 4 differ, so a transposed convolution with the sums of the weights does the
    same with 4 products in place of 9, and without the doubled image: in half of the time on a CPU.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, padding=1)
        self.register_buffer("spread", torch.tensor(SPREAD, dtype=torch.float32), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the convolution of the doubled images."""
        weight = torch.einsum("ur,oirc,vc->iouv", self.spread, self.weight, self.spread)
        return F.conv_transpose2d(images, weight, self.bias, stride=2, padding=1)


class ImageGenerator(nn.Module):
    """Noise (B, noise) to pixels before their tanh, (B, C, H, W): a linear layer, then convolutions that each double.

    Images of 32 x 32 start at 8 x 8 and are doubled twice, as published; larger ones are doubled more often. Sides
    that are no such multiple are cut from the next larger one. The last batch norm, without weights, keeps the tanh
    from saturating.

    Args:
        shape: (C, H, W) of the images.
        noise: size of the noise.
        width: channels of the last hidden layer; the others have twice as many.
    """

    def __init__(self, shape: Sequence[int], noise: int, width: int) -> None:
        super().__init__()
        channels, *self.sides = shape
        doublings = max(2, math.ceil(math.log2(max(self.sides) / SMALL)))
        self.start = (2 * width, *(-(-side // 2**doublings) for side in self.sides))
        self.first = nn.Linear(noise, math.prod(self.start))
        layers: list[nn.Module] = [nn.BatchNorm2d(2 * width)]
        for place in range(1, doublings + 1):
            wide = width if place == doublings else 2 * width
            layers += [Doubling(2 * width, wide), nn.BatchNorm2d(wide), nn.LeakyReLU(SLOPE, inplace=True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))
        self.last = nn.BatchNorm2d(channels, affine=False)

    def forward(self, noise: Tensor) -> Tensor:
        """Map noise (B, noise) to real numbers (B, C, H, W); ``to_images`` makes images of them."""
        start = self.first(noise).view(-1, *self.start).contiguous(memory_format=torch.channels_last)
        height, width = self.sides
        return self.last(self.body(start)[:, :, :height, :width])


def to_images(values: Tensor) -> Tensor:
    """Map real numbers to pixels in [0, 1], by a tanh."""
    return (values.tanh() + 1) / 2

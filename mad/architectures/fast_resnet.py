"""A small residual network that learns CIFAR-10 on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mad.architectures.pixels import standardize
from mad.errors import MadError

STEM, WIDTHS = 24, (64, 128, 256)
SCALE = 0.125
SMALLEST = 9


class FastResNet(nn.Module):
    """A 2 x 2 stem, three stages of two 3 x 3 convolutions, global max pooling, and a scaled linear layer.

    A stage pools right after its first convolution, and its second convolution is residual. The network has few, wide
    layers, and is widest where the feature maps are small. The logits are an eighth of the last layer's output, which
    allows a large learning rate. It takes 66 million multiply-adds per image of 32 x 32, and has 1.2 million weights.

    Args:
        shape: (C, H, W) of the images; H and W are at least 9.
        classes: number of classes K.
        mean: mean of each channel, subtracted from pixels in [0, 1]; None for CIFAR's, or ImageNet's from 64 pixels on.
        std: standard deviation of each channel, by which pixels are divided.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if min(shape[1:]) < SMALLEST:
            raise MadError(f"fast_resnet takes images of at least {SMALLEST} x {SMALLEST}, got {shape[1]} x {shape[2]}")
        taken, stages = STEM, list[nn.Module]()
        for width in WIDTHS:
            stages += [*_convolution(taken, width, nn.MaxPool2d(2)), Residual(width)]
            taken = width
        self.trunk = nn.Sequential(
            standardize(shape, mean, std, None),
            nn.Conv2d(shape[0], STEM, 2, bias=False),
            nn.BatchNorm2d(STEM),
            nn.ReLU(inplace=True),
            *stages,
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(taken, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.head(self.trunk(images)) * SCALE


class Residual(nn.Module):
    """A convolution added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(*_convolution(width, width))

    def forward(self, images: Tensor) -> Tensor:
        """Map features to features of the same shape."""
        return self.residual(images) + images


def _convolution(taken: int, given: int, *pool: nn.Module) -> tuple[nn.Module, ...]:
    layer = nn.Conv2d(taken, given, 3, padding=1, bias=False)
    return layer, *pool, nn.BatchNorm2d(given), nn.ReLU(inplace=True)

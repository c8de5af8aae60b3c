"""Residual networks of 18, 34 and 50 layers, for small images and for large ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from mad.architectures import imagenet
from mad.architectures.pixels import large, standardize

WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """Convolutions that are added to their input, which is projected if the shape changes."""

    expansion: ClassVar[int] = 1

    def __init__(self, taken: int, given: int, stride: int, *residual: nn.Module) -> None:
        super().__init__()
        self.residual = nn.Sequential(*residual)
        same = taken == given and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(taken, given, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """Map features (B, taken, H, W) to (B, given, H / stride, W / stride)."""
        return self.relu(self.residual(images) + self.shortcut(images))  # not +=, which Opacus does not support


class BasicBlock(Block):
    """Two 3 x 3 convolutions."""

    def __init__(self, taken: int, width: int, stride: int = 1) -> None:
        first = convolution(taken, width, 3, stride)
        super().__init__(taken, width, stride, *first, nn.ReLU(inplace=True), *convolution(width, width, 3))


class Bottleneck(Block):
    """A 1 x 1, a 3 x 3 (with the stride) and a 1 x 1 convolution, the last one four times as wide."""

    expansion = 4

    def __init__(self, taken: int, width: int, stride: int = 1) -> None:
        first, middle = convolution(taken, width, 1), convolution(width, width, 3, stride)
        last, relu = convolution(width, width * self.expansion, 1), nn.ReLU(inplace=True)
        super().__init__(taken, width * self.expansion, stride, *first, relu, *middle, relu, *last)


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, and one linear layer.

    For images of less than 64 pixels the stem is a 3 x 3 convolution without pooling; for larger images it is
    ImageNet's, 7 x 7 with pooling.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes K.
        mean: mean of each channel, subtracted from pixels in [0, 1]; None for CIFAR's, or ImageNet's if the stem or the
            weights are ImageNet's.
        std: standard deviation of each channel, by which pixels are divided; None as for ``mean``.
        weights: ``imagenet`` for torchvision's weights in all layers but the last, and but the stem for small images;
            None for random weights.
    """

    block: ClassVar[type[BasicBlock] | type[Bottleneck]]
    depths: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        pretrained = imagenet.wanted(weights)
        taken = WIDTHS[0]
        blocks: list[nn.Module] = []
        for stage, (width, depth) in enumerate(zip(WIDTHS, self.depths, strict=True)):
            for place in range(depth):
                blocks.append(self.block(taken, width, stride=2 if stage and not place else 1))
                taken = width * self.block.expansion
        stem = convolution(shape[0], WIDTHS[0], *((7, 2) if large(shape) else (3, 1)))
        self.trunk = nn.Sequential(
            standardize(shape, mean, std, weights),
            *stem,
            nn.ReLU(inplace=True),
            *([nn.MaxPool2d(3, 2, padding=1)] if large(shape) else []),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(taken, classes)
        if pretrained:
            imagenet.adopt(self.trunk, shape, type(self).__name__.lower(), skip=0 if large(shape) else len(stem))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.head(self.trunk(images))


class ResNet18(ResNet):
    """Two blocks of two convolutions per stage, and 512 features."""

    block, depths = BasicBlock, (2, 2, 2, 2)


class ResNet34(ResNet):
    """Stages of three, four, six and three blocks of two convolutions, and 512 features."""

    block, depths = BasicBlock, (3, 4, 6, 3)


class ResNet50(ResNet):
    """Stages of three, four, six and three blocks of three convolutions, and 2,048 features."""

    block, depths = Bottleneck, (3, 4, 6, 3)


def convolution(taken: int, given: int, size: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a padded convolution, which divides H and W by its stride, and its batch norm."""
    layer = nn.Conv2d(taken, given, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer, nn.BatchNorm2d(given)

"""ResNet-18 for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mad.architectures.pixels import CIFAR_MEAN, CIFAR_STD, Standardize

WIDTHS = (64, 128, 256, 512)


class ResNet18(nn.Module):
    """A 3 x 3 stem without pooling, four stages of two residual blocks, and one linear layer of 512 features.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes K.
        mean: of each channel, subtracted from pixels in [0, 1].
        std: of each channel; pixels are divided by it.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
    ) -> None:
        super().__init__()
        width = WIDTHS[0]
        blocks: list[nn.Module] = []
        for stage, wider in enumerate(WIDTHS):
            blocks += [BasicBlock(width, wider, stride=1 if stage == 0 else 2), BasicBlock(wider, wider)]
            width = wider
        self.trunk = nn.Sequential(
            Standardize(shape[0], mean, std),
            *convolution(shape[0], WIDTHS[0], 3),
            nn.ReLU(inplace=True),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.head(self.trunk(images))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions added to their input, which is projected where the shape changes."""

    def __init__(self, taken: int, given: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *convolution(taken, given, 3, stride), nn.ReLU(inplace=True), *convolution(given, given, 3)
        )
        same = taken == given and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(taken, given, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """Map features (B, taken, H, W) to (B, given, H / stride, W / stride)."""
        residual = self.residual(images)
        residual += self.shortcut(images)
        return self.relu(residual)


def convolution(taken: int, given: int, size: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a convolution that keeps the size, save for its stride, and its batch norm."""
    layer = nn.Conv2d(taken, given, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer, nn.BatchNorm2d(given)

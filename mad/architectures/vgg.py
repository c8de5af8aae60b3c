"""VGG with batch norm, as the paper's CIFAR victims."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mad.architectures.pixels import CIFAR_MEAN, CIFAR_STD, Standardize

CONFIGURATION_D = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16BN(nn.Module):
    """Thirteen 3 x 3 convolutions with batch norms in five pooled stages, then one linear layer of 512 features.

    Pooling rounds up, so that 28 x 28 images pass; larger images are averaged over what places are left.

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
        channels = shape[0]
        layers: list[nn.Module] = [Standardize(channels, mean, std)]
        for widths in CONFIGURATION_D:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels, classes)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.head(self.trunk(images))


def _initialize(layer: nn.Module) -> None:
    """Draw a convolution from N(0, 2/n), n its filters times their area, and a linear layer from N(0, 0.01^2)."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
    if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)

"""VGG with batch norm, the architecture of the paper's CIFAR, CUB-200 and Caltech-256 victims."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mad.architectures import imagenet
from mad.architectures.pixels import large, standardize

CONFIGURATION_D = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
PLACES, HIDDEN = 7, 4096


class VGG16BN(nn.Module):
    """Thirteen 3 x 3 convolutions with batch norms in five stages with pooling, then linear layers.

    For images of less than 64 pixels there is one linear layer on 512 features. Pooling rounds sizes up, so that
    28 x 28 images are large enough, and the last feature map is averaged. For larger images it is ImageNet's network,
    with two hidden layers of 4,096 units.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes K.
        mean: mean of each channel, subtracted from pixels in [0, 1]; None for CIFAR's, or ImageNet's for large images
            and for ImageNet weights.
        std: standard deviation of each channel, by which pixels are divided; None as for ``mean``.
        weights: ``imagenet`` for torchvision's weights in all layers but the last; None for random weights.
    """

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
        channels = shape[0]
        layers: list[nn.Module] = [standardize(shape, mean, std, weights)]
        for widths in CONFIGURATION_D:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        layers += [nn.AdaptiveAvgPool2d(PLACES if large(shape) else 1), nn.Flatten()]
        if large(shape):
            for taken in (channels * PLACES**2, HIDDEN):
                layers += [nn.Linear(taken, HIDDEN), nn.ReLU(inplace=True), nn.Dropout()]
            channels = HIDDEN
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)
        self.apply(_initialize)
        if pretrained:
            imagenet.adopt(self.trunk, shape, "vgg16_bn")

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.head(self.trunk(images))


def _initialize(layer: nn.Module) -> None:
    """Draw a convolution's weights from N(0, 2/n), n = filters x kernel area; a linear layer's from N(0, 0.01^2)."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
    if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)

"""LeNet, the architecture of the paper's MNIST and Fashion-MNIST victims."""

from __future__ import annotations

from torch import Tensor, nn

from mad.errors import MadError


class LeNet(nn.Module):
    """Two 5 x 5 convolutions of 20 and 50 filters, each with ReLU and max pooling, and a hidden layer of 500 units.

    It is the network of the published code, with torch's default initial weights.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes K.
        mean: mean that is subtracted from pixels in [0, 1].
        std: standard deviation by which pixels are divided.
    """

    version = 2  # version 1 had no ReLU after the convolutions

    def __init__(self, shape: tuple[int, int, int], classes: int, mean: float = 0.1307, std: float = 0.3081) -> None:
        super().__init__()
        channels, height, width = shape
        rows, columns = ((height - 4) // 2 - 4) // 2, ((width - 4) // 2 - 4) // 2
        if min(rows, columns) < 1:
            raise MadError(f"LeNet takes images of at least 16 x 16, got {height} x {width}")
        self.mean, self.std = mean, std
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 20, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),  # the published code has it before the pooling: same function and gradients, more work
            nn.Conv2d(20, 50, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(50 * rows * columns, 500),
            nn.ReLU(),
        )
        self.head = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.head(self.trunk((images - self.mean) / self.std))

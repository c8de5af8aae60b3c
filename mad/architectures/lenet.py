"""LeNet, as the paper's MNIST and Fashion-MNIST victims."""

from __future__ import annotations

from torch import Tensor, nn

from mad.errors import MadError


class LeNet(nn.Module):
    """Convolutions of 20 and 50 filters of 5 x 5, each with a ReLU and max-pooled, a layer of 500 units, the classes.

    As the published code has it, torch's default initial weights included.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes K.
        mean: subtracted from pixels in [0, 1].
        std: pixels are divided by it.
    """

    version = 2  # 1 had no ReLU after the convolutions

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
            nn.ReLU(),  # published before the pooling: the same function and gradients, on four times as many values
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

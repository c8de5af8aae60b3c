"""A network without convolutions, such as an adversary may choose without knowing the victim's architecture."""

from __future__ import annotations

from torch import Tensor, nn

WIDTH = 500


class MLP(nn.Module):
    """Two hidden layers of 500 units, and a linear layer.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes K.
        mean: mean that is subtracted from pixels in [0, 1].
        std: standard deviation by which pixels are divided.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, mean: float = 0.1307, std: float = 0.3081) -> None:
        super().__init__()
        channels, height, width = shape
        self.mean, self.std = mean, std
        self.trunk = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
        )
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.head(self.trunk((images - self.mean) / self.std))

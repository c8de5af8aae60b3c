"""What networks for photographs do to pixels before anything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


class Standardize(nn.Module):
    """Subtract a mean and divide by a deviation, channel by channel; their averages serve other numbers of channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(values, dtype=torch.float32)
            value = value if len(value) == channels else value.mean().repeat(channels)
            self.register_buffer(name, value.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to the same shape."""
        return (images - self.mean) / self.std

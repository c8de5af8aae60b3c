"""What a data-free attack keeps of its queries, to learn from again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Memory:
    """Images and their targets, of which the oldest make room for new ones; the images are kept in half precision.

    Args:
        size: the most images.
        shape: (C, H, W) of the images.
        classes: number of classes K.
    """

    def __init__(self, size: int, shape: Sequence[int], classes: int) -> None:
        self.images = torch.zeros(size, *shape, dtype=torch.float16)
        self.targets = torch.zeros(size, classes)
        self.added = 0

    def add(self, images: Tensor, targets: Tensor) -> None:
        """Keep images (B, C, H, W) and targets (B, K); of more than there is room for, the last ones."""
        self.added += len(images)
        images, targets = images[-len(self.images) :], targets[-len(self.images) :]
        rows = torch.arange(self.added - len(images), self.added) % len(self.images)  # no row twice
        self.images[rows], self.targets[rows] = images.half().cpu(), targets.cpu()

    def drawn(self, count: int, draw: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return random ones of those that are kept, with repetitions, as float32 on a device."""
        held = min(self.added, len(self.images))
        rows = torch.randint(held, (count,), generator=draw, device=draw.device).cpu()
        images = self.images[rows].to(device).float().contiguous(memory_format=torch.channels_last)
        return images, self.targets[rows].to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept."""
        held = min(self.added, len(self.images))
        return {"added": self.added, "images": self.images[:held].clone(), "targets": self.targets[:held].clone()}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Keep what a ``state_dict`` holds."""
        held, self.added = len(found["images"]), found["added"]
        self.images[:held], self.targets[:held] = found["images"], found["targets"]

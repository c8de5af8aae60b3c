"""Self-supervision by rotations: a second loss that needs images, but no answers (S4L, Zhai et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.architectures.library import last_layer
from mad.augmentation import augmented
from mad.datasets import Images, batches, to_device, to_unit_range
from mad.errors import UnfitError, check_number
from mad.seeds import generator, seeded
from mad.training import Trainer
from mad.weights import last_path

TURNS = 4  # quarter turns, the classes of the second loss


@dataclass(frozen=True)
class RotationTrainer(Trainer):
    """A recipe whose network also guesses by how many quarter turns images were rotated.

    The loss is that of ``Trainer``, plus ``rotation`` times the cross-entropy of a second, linear head on what the
    network's last layer takes, which is thrown away afterwards. The images to rotate are drawn from all images that
    the training is given, also those without a target: all of a pool, not only those that were asked about, unless a
    recovery adds images (``few``), with which only those with a target go. A step takes a quarter as many of them as
    ``batch_size``, each in all four rotations, so it costs about twice as much; the paper takes as many as have
    targets. Images with targets are not rotated: no answer is known to rotated ones.

    Args:
        rotation: weight of the second loss, above 0; 1 as published.
    """

    rotation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rotation", self.rotation, 0)

    def check(self, shape: Sequence[int]) -> None:
        """Raise UnfitError for images (C, H, W) that are not square."""
        if shape[-1] != shape[-2]:
            raise UnfitError(
                f"knockoff.rotation turns square images by 90 degrees, these are {shape[-2]} x {shape[-1]}: "
                "set knockoff.rotation=0"
            )

    def epochs_of(
        self,
        model: nn.Module,
        images: Images,
        targets: Tensor,
        *,
        seed: int,
        device: torch.device,
        task: str,
        rows: Tensor | None = None,
    ) -> Iterator[int]:
        """Train ``model`` in place as ``Trainer.epochs_of`` does; the images need not all have a target."""
        self.check(images.shape)
        images = to_device(images, device) if isinstance(images, Tensor) else images
        with seeded(seed, f"head for rotations of {task}"):
            both = TwoHeads(model, self.drawn(images, seed, device, task))
        try:
            yield from super().epochs_of(both, images, targets, seed=seed, device=device, task=task, rows=rows)
        finally:
            both.detach()

    def drawn(self, images: Images, seed: int, device: torch.device, task: str) -> Iterator[Tensor]:
        """Yield batches of images to rotate, without end, in random order."""
        order, draw = (generator(seed, f"{what} of rotations of {task}") for what in ("order", "augmentation"))
        while True:
            turn = torch.randperm(len(images), generator=order)
            for some in batches(images, turn, max(1, self.batch_size // TURNS), device):
                yield augmented(some, self.augment, draw)

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of both losses; one forward pass takes both kinds of images, as batch norms need it."""
        assert isinstance(model, TwoHeads)
        some = to_unit_range(next(model.images))
        turned = torch.cat([torch.rot90(some, turns, (2, 3)) for turns in range(TURNS)])
        logits = self.logits(model, torch.cat([to_unit_range(images), turned]))
        guesses = model.head(model.features(len(logits))[len(images) :])
        turns = torch.arange(TURNS, device=images.device).repeat_interleave(len(some))
        return F.cross_entropy(logits[: len(images)], targets) + self.rotation * F.cross_entropy(guesses, turns)


class Drawn:
    """An iterator over batches of images; that of a copy of a network yields none."""

    def __init__(self, images: Iterator[Tensor]) -> None:
        self.images = images

    def __next__(self) -> Tensor:
        return next(self.images)

    def __deepcopy__(self, memo: Any) -> Drawn:
        return Drawn(iter(()))


class TwoHeads(nn.Module):
    """A network, and a second linear head on what its last layer takes; images to the logits of the first.

    Args:
        network: images to logits; it is hooked until ``detach``.
        images: an endless iterator over batches to rotate.
    """

    def __init__(self, network: nn.Module, images: Iterator[Tensor]) -> None:
        super().__init__()
        self.network, self.images = network, Drawn(images)
        self.last = last_layer(network.get_submodule(last_path(network)))[1]
        assert isinstance(self.last, nn.Linear | nn.Conv2d)
        size = self.last.in_features if isinstance(self.last, nn.Linear) else self.last.in_channels
        self.head = nn.Linear(size, TURNS, dtype=self.last.weight.dtype)
        self.taken: Tensor | None = None
        self.hook = self.last.register_forward_pre_hook(self.take)

    def take(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Note what the last layer is given."""
        self.taken = given[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits."""
        logits: Tensor = self.network(images)
        return logits

    def features(self, count: int) -> Tensor:
        """Return what the last layer took of ``count`` images, (B, F), averaged over the places of feature maps.

        Raises:
            UnfitError: if that are not features of each image.
        """
        taken = self.taken
        if taken is not None and taken.dim() > 2:
            convolution = isinstance(self.last, nn.Conv2d)
            taken = taken.flatten(2).mean(dim=2) if convolution else taken.flatten(1, -2).mean(dim=1)
        if taken is None or taken.shape != (count, self.head.in_features):
            raise UnfitError(
                "knockoff.rotation needs a network whose last layer takes features of each image: set it to 0"
            )
        return taken.to(self.head.weight.dtype)

    def detach(self) -> None:
        """Remove the hook from the network."""
        self.hook.remove()
        self.taken = None


def with_rotations(trainer: Trainer, rotation: float) -> RotationTrainer:
    """Return a recipe that also guesses rotations.

    Raises:
        UnfitError: if the recipe has a loss of its own.
    """
    if type(trainer) not in (Trainer, RotationTrainer):
        raise UnfitError(
            f"knockoff.rotation adds to the loss of a plain trainer, got {type(trainer).__name__}: set it to 0"
        )
    return RotationTrainer.like(trainer, rotation=rotation)

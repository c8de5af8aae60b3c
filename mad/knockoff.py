"""The stolen model: how an adversary trains on its transfer set."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from mad.attacks import TransferSet
from mad.errors import MadError
from mad.seeds import seeded
from mad.training import Trainer
from mad.victim import Architecture, Victim


@dataclass(frozen=True)
class Knockoff:
    """The adversary's training recipe.

    Args:
        trainer: the recipe; the arguments after ``architecture`` replace one field each where given.
        architecture: None for the victim's, as in the paper.
        epochs: passes over the transfer set.
        optimizer: ``sgd``, ``momentum``, ``adam`` or ``adagrad``.
        learning_rate: see ``Trainer``.
        weight_decay: see ``Trainer``.
        initial_weights: a safetensors file to start from; tensors of another shape (the last layer) stay random.
    """

    trainer: Trainer
    architecture: Architecture | None = None
    epochs: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    initial_weights: str | None = field(default=None, compare=False)
    initial_sha256: str | None = None  # which weights those are, wherever the file lies

    def __post_init__(self) -> None:
        if self.initial_weights:
            try:
                content = Path(self.initial_weights).read_bytes()
            except OSError as error:
                raise MadError(f"knockoff.initial_weights={self.initial_weights}: {error.strerror}") from error
            object.__setattr__(self, "initial_sha256", sha256(content).hexdigest())
        changes = ("epochs", "optimizer", "learning_rate", "weight_decay")
        given = {name: getattr(self, name) for name in changes}
        object.__setattr__(self, "trainer", self.trainer.for_knockoffs().but(**given))
        for name in changes:
            object.__setattr__(self, name, None)

    def train(
        self, transfer: TransferSet, targets: Tensor, victim: Victim, seed: int, device: torch.device
    ) -> nn.Module:
        """Return the knockoff after its last epoch; targets are posteriors (B, K)."""
        with seeded(seed, "knockoff"):
            model = (self.architecture or victim.architecture)(
                shape=victim.dataset.shape, classes=victim.dataset.classes
            )
        if self.initial_weights:
            self._start(model)
        self.trainer.fit(model, transfer.images, targets, rows=transfer.rows, seed=seed, device=device, task="knockoff")
        return model

    def _start(self, model: nn.Module) -> None:
        from safetensors.torch import load_file

        try:
            given = load_file(str(self.initial_weights))
        except Exception as error:
            raise MadError(
                f"knockoff.initial_weights={self.initial_weights} cannot be read as safetensors ({error})"
            ) from error
        own = model.state_dict()
        fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
        if not fitting:
            raise MadError(f"no tensor of knockoff.initial_weights={self.initial_weights} fits the architecture")
        model.load_state_dict(own | fitting)

"""The stolen model's recipe: how an adversary trains on its transfer set."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from torch import nn

from mad.errors import MadError
from mad.training import Trainer
from mad.victim import Architecture


@dataclass(frozen=True)
class Knockoff:
    """The adversary's training recipe.

    Args:
        trainer: the recipe; the arguments after ``architecture`` replace one field each where given.
        architecture: None for the victim's, as in the paper; a cell fills it in.
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

    def start(self, model: nn.Module) -> None:
        """Load the initial weights, where there are any, into an untrained network."""
        if not self.initial_weights:
            return
        from safetensors.torch import load

        try:
            content = Path(self.initial_weights).read_bytes()
            given = load(content)
        except Exception as error:
            raise MadError(
                f"knockoff.initial_weights={self.initial_weights} cannot be read as safetensors ({error})"
            ) from error
        if sha256(content).hexdigest() != self.initial_sha256:
            raise MadError(f"knockoff.initial_weights={self.initial_weights} changed after the start: start again")
        own = model.state_dict()
        fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
        if not fitting:
            raise MadError(f"no tensor of knockoff.initial_weights={self.initial_weights} fits the architecture")
        model.load_state_dict(own | fitting)

"""The knockoff: the recipe by which an adversary trains the stolen model on its transfer set."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from torch import nn

from mad import weights
from mad.errors import MadError, check_kind, check_number
from mad.robust import made_robust
from mad.rotation import RotationTrainer, with_rotations
from mad.storage.fingerprint import ADDED
from mad.training import Trainer
from mad.victim import Architecture, Victim

CHANGES = (
    *("epochs", "optimizer", "learning_rate", "weight_decay", "min_steps", "schedule", "batch_size", "momentum"),
    *("augment", "mixup"),
)


@dataclass(frozen=True)
class Knockoff:
    """The recipe of the stolen model: architecture, training and initial weights.

    Args:
        trainer: the training recipe. Each of the fields in ``CHANGES`` replaces the trainer's field of that name if it
            is given. If ``optimizer`` differs from the trainer's and no ``learning_rate`` is given, the optimizer's
            usual rate is used.
        architecture: None for the victim's, as in the paper; a cell fills it in.
        epochs: passes over the transfer set; more if they make fewer than ``min_steps`` steps.
        optimizer: ``sgd``, ``momentum``, ``adam`` or ``adagrad``.
        learning_rate: see ``Trainer``.
        weight_decay: see ``Trainer``.
        initial_weights: a safetensors file to start from; see ``mad.weights``.
        min_steps: see ``Trainer``.
        schedule: see ``Trainer``.
        batch_size: see ``Trainer``.
        momentum: see ``Trainer``.
        augment: see ``Trainer``.
        mixup: see ``Trainer``.
        rotation: weight of the loss of guessing how images are rotated, at least 0; see ``RotationTrainer``. 0: none.
        robust: a loss that is robust to wrong answers, in place of the cross-entropy: ``generalized``, ``bootstrap``,
            ``smoothed`` or ``small``; see ``RobustTrainer``. None: the cross-entropy. It does not go with ``rotation``.
        length: how many times as long to train, above 0: a factor of ``epochs`` and of ``min_steps``.
    """

    trainer: Trainer
    architecture: Architecture | None = None
    epochs: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    initial_weights: str | None = field(default=None, compare=False)
    initial_sha256: str | None = None  # computed from the file; its path is not part of the fingerprint
    min_steps: int | None = field(default=None, metadata=ADDED)
    schedule: str | None = field(default=None, metadata=ADDED)
    batch_size: int | None = field(default=None, metadata=ADDED)
    momentum: float | None = field(default=None, metadata=ADDED)
    augment: str | None = field(default=None, metadata=ADDED)
    mixup: float | None = field(default=None, metadata=ADDED)
    rotation: float = field(default=0.0, metadata=ADDED)
    robust: str | None = field(default=None, metadata=ADDED)
    length: float = field(default=1.0, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.initial_weights is not None:
            object.__setattr__(self, "initial_sha256", sha256(self._content()).hexdigest())
        given = {name: getattr(self, name) for name in CHANGES}
        check_kind("knockoff.trainer", self.trainer, Trainer)
        trainer = self.trainer.for_knockoffs().but(**given)
        check_number("knockoff.length", self.length, 1e-3, 1e3)
        if self.length != 1:
            epochs = max(1, round(self.length * trainer.epochs))
            trainer = trainer.but(epochs=epochs, min_steps=round(self.length * trainer.min_steps))
        trainer = with_rotations(trainer, self.rotation) if self.rotation else trainer
        object.__setattr__(self, "trainer", trainer if self.robust is None else made_robust(trainer, self.robust))
        for name in (*CHANGES, "robust"):
            object.__setattr__(self, name, None)
        object.__setattr__(self, "rotation", 0.0)
        object.__setattr__(self, "length", 1.0)  # they are the trainer's now

    def check(self, victim: Victim) -> None:
        """Raise MadError if the recipe does not fit the victim's images; called before anything is trained."""
        if isinstance(self.trainer, RotationTrainer):
            self.trainer.check(victim.dataset.shape)

    def start(self, model: nn.Module) -> str | None:
        """Load the initial weights into an untrained network, in place; return a text that says what was loaded.

        Returns None, and leaves the network unchanged, if the recipe has no initial weights.

        Raises:
            MadError: if the file cannot be read, has changed, or does not fit the network.
        """
        if self.initial_weights is None:
            return None
        content = self._content()
        if sha256(content).hexdigest() != self.initial_sha256:
            raise self._error("changed after the start: start again")
        try:
            return weights.load_into(model, content)
        except MadError as error:
            raise self._error(str(error)) from error

    def _content(self) -> bytes:
        """Return the bytes of the file of initial weights; MadError if it cannot be read."""
        try:
            return Path(str(self.initial_weights)).expanduser().read_bytes()
        except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, or an unknown user's ~
            raise self._error(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error

    def _error(self, what: str) -> MadError:
        return MadError(f"knockoff.initial_weights={self.initial_weights} {what}")

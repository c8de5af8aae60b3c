"""A cell: everything that determines a record's numbers."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mad import __version__
from mad.adversary import Adversary
from mad.attacks import Attack
from mad.cache import Cache
from mad.datasets import Labelled, Pool, checked
from mad.defenses import Defense, Undefended
from mad.errors import MadError, check_choice, check_flag, check_name, check_number
from mad.knockoff import Knockoff
from mad.knowledge import KNOWLEDGE
from mad.recoveries import Recovery
from mad.schema import Record
from mad.storage.checkpoint import Checkpoint
from mad.storage.fingerprint import ADDED, describe, digest, identity, name_of, settings
from mad.storage.store import Store
from mad.victim import Victim

SHARED = Cache()


@dataclass(frozen=True)
class Cell:
    """Everything that determines a record's numbers.

    Args:
        victim: whom to steal.
        pool: the adversary's images; left out where the attack needs none.
        defense: what the victim does to its answers.
        attack: how the adversary asks.
        recovery: what it makes of the answers.
        knockoff: how it trains the stolen model.
        seed: of all that is drawn, but for the victim's weights.
        probe: also measure how far the defense turns the gradient of an attack that trains while it queries (paper,
            figs. 6 and 7): ten times the queries' time.
        overrides: the words of the command line that make it, for its record; None where objects were given.
    """

    kind: ClassVar[str] = "mad.pipeline.Cell"
    victim: Victim
    pool: Pool | None
    defense: Defense
    attack: Attack
    recovery: Recovery
    knockoff: Knockoff
    seed: int = 0
    probe: bool = field(default=False, metadata=ADDED)
    overrides: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_number("seed", self.seed, 0, 2**62, whole=True)
        check_flag("probe", self.probe)
        check_choice(f"recovery {self.recovery.name}: knows", self.recovery.knows, KNOWLEDGE)
        if not self.attack.needs_pool:
            object.__setattr__(self, "pool", None)
        elif self.pool is None:
            raise MadError(f"attack {self.attack.name} draws on images of its own: give it a pool")
        for part in ("victim", "pool", "defense", "attack", "recovery"):
            check_name(f"{part}.name", getattr(getattr(self, part), "name", "none"))
        if self.defense.epsilon == 0:  # whatever the defense, its answers are the clean ones
            object.__setattr__(self, "defense", Undefended())
        self.defense.check(self.victim)
        self.attack.check(self.victim)
        self._check_online()
        if self.knockoff.architecture is None:
            own = replace(self.knockoff, architecture=self.victim.architecture)
            object.__setattr__(self, "knockoff", own)

    def _check_online(self) -> None:
        """Refuse what goes only with an attack that trains while it queries, and what does not go with one."""
        surrogate: Any = getattr(self.defense, "surrogate", None)
        if self.attack.recovers_early and self.recovery.learns:
            raise MadError(
                f"recovery {self.recovery.name} learns from a whole transfer set, attack {self.attack.name} trains "
                "before it has one: take another of the two"
            )
        if self.attack.online:
            return
        for what, wanted in (
            (f"surrogate {getattr(surrogate, 'name', '')}", getattr(surrogate, "white_box", False)),
            ("probe=true", self.probe),
        ):
            if wanted:
                raise MadError(
                    f"{what} reads a network that is trained while it queries, "
                    f"attack {self.attack.name} trains none: take attack=online"
                )

    @property
    def reference(self) -> Cell:
        """The same theft with no defense."""
        words = [word for word in shlex.split(self.overrides or "") if not word.lstrip("+~").startswith("defense")]
        overrides = shlex.join([*words, "defense=none"]) if self.overrides is not None else None
        return replace(self, defense=Undefended(), overrides=overrides)

    @cached_property
    def fingerprint(self) -> str:
        """The name of everything that determines this cell's numbers, as it was when it was first asked for."""
        return digest(describe(self))

    @cached_property
    def comparison_group(self) -> str:
        """The name of everything but the defense and the seeds: cells of one group belong in one figure."""
        description = describe(self)
        del description["defense"], description["seed"], description["victim"]["seed"]
        return digest(description)

    @property
    def pool_name(self) -> str:
        """The pool's name, ``none`` where there is none."""
        return "none" if self.pool is None else self.pool.name

    def adversary(self, device: torch.device, store: Store | None = None) -> Adversary:
        """Return who steals."""
        dataset, knows = self.victim.dataset, self.recovery.knows
        resumes = store is not None and not self.defense.stateful  # what a client has asked is not kept
        return Adversary(
            knockoff=self.knockoff,
            recovery=self.recovery,
            shape=dataset.shape,
            classes=dataset.classes,
            seed=self.seed,
            device=device,
            labels=self.labels() if self.attack.labelled else None,
            defense=self.defense if knows == "the defense" else None,
            victim=self.victim if knows == "the victim's data" else None,
            store=store,
            checkpoint=Checkpoint(store.outputs, self.path.parent) if store is not None and resumes else None,
        )

    def labels(self) -> Tensor:
        """Return the class of each image of the pool, of classes of the pool's own, int64 (N,).

        Raises:
            MadError: if it has none to choose from.
        """
        pool, found = self.pool, torch.zeros(0)
        if isinstance(pool, Labelled):
            found = SHARED.get(("labels", identity(pool), str(self.contents())), lambda: checked.pool_labels(pool))
        if len(found.unique()) < 2:
            raise MadError(
                f"attack {self.attack.name} chooses among classes, pool {self.pool_name} has none: take another pool"
            )
        return found

    def contents(self) -> Any:
        """Return what stands for the pool's data, where its own description does not."""
        if self.pool is None:
            return None
        return checked.pool_contents(self.pool, self.victim.dataset.shape, self.victim.name, self.attack.labelled)

    @property
    def path(self) -> Path:
        """Where this cell's record lies, below the outputs folder."""
        parts = (self.victim.name, self.defense.name, self.attack.name, self.fingerprint)
        return Path("runs", *parts, "record.json")


def about(cell: Cell) -> Record:
    """Return the columns that say what a record is of, but for how the knockoff was trained."""
    return {
        "victim": cell.victim.name,
        "dataset": cell.victim.dataset.name,
        "architecture": name_of(cell.victim.architecture),
        "pool": cell.pool_name,
        "defense": cell.defense.name,
        "defense_settings": settings(cell.defense),
        "epsilon": cell.defense.epsilon,
        "strength_parameter": cell.defense.strength_parameter,
        "strength": cell.defense.strength,
        "surrogate": getattr(getattr(cell.defense, "surrogate", None), "name", None),
        "attack": cell.attack.name,
        "attack_settings": settings(cell.attack),
        "recovery": cell.recovery.name,
        "knockoff_architecture": name_of(cell.knockoff.architecture),
        "victim_epochs": cell.victim.trainer.epochs,
        "seed": cell.seed,
        "comparison_group": cell.comparison_group,
        "fingerprint": cell.fingerprint,
        "overrides": cell.overrides or "",
        "version": __version__,
        "torch": torch.__version__,
    }

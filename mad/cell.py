"""A cell: one victim, defense, attack, recovery and knockoff, with their seeds; one run makes one record of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
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
from mad.defenses.surrogates import Surrogate
from mad.errors import MadError, UnfitError, check_choice, check_flag, check_kind, check_name, check_number
from mad.knockoff import Knockoff
from mad.knowledge import KNOWLEDGE
from mad.recoveries import Recovery
from mad.schema import Record, merged
from mad.storage.checkpoint import Checkpoint
from mad.storage.fingerprint import ADDED, describe, digest, identity, settings
from mad.storage.store import Store
from mad.victim import Victim

SHARED = Cache()


@dataclass(frozen=True)
class Cell:
    """Everything that determines the numbers of one record.

    Args:
        victim: the recipe of the victim to steal.
        pool: the adversary's images; set to None if the attack needs no pool.
        defense: how the victim perturbs its answers.
        attack: how the adversary chooses its queries.
        recovery: how the adversary turns answers into training targets.
        knockoff: how the adversary trains the stolen model.
        seed: seed of all random draws, except for those of the victim's training, which has its own.
        probe: whether to measure how far the defense turns the gradient of an attack that trains while it queries
            (paper, figs. 6 and 7). Querying then takes about ten times as long.
        overrides: the command-line overrides that describe this cell, for its record; None for a cell built in Python.
        config_dir: the further folder of configs that these need; None if they need none.
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
    config_dir: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_number("seed", self.seed, 0, 2**62, whole=True)
        check_flag("probe", self.probe)
        check_kind("victim", self.victim, Victim)
        check_kind("knockoff", self.knockoff, Knockoff)
        for part, base in (("defense", Defense), ("attack", Attack), ("recovery", Recovery)):
            given = getattr(self, part)
            if not isinstance(given, base):
                what, module = base.__name__, base.__module__.rpartition(".")[0]
                raise MadError(
                    f"{part} {type(given).__name__} needs the base class {what}: from {module} import {what}"
                )
        if not self.attack.needs_pool:
            object.__setattr__(self, "pool", None)
        elif self.pool is None:
            raise MadError(f"attack {self.attack.name} draws on images of its own: give it a pool")
        for part in ("victim", "pool", "defense", "attack", "recovery"):
            given = getattr(self, part)
            if given is not None and not hasattr(given, "name"):
                raise MadError(f"{part} {type(given).__name__} has no name: set the class attribute name")
            check_name(f"{part}.name", getattr(given, "name", "none"))
        for kind, plugin in (("recovery", self.recovery), ("attack", self.attack)):
            for known in plugin.knows:
                check_choice(f"{kind} {plugin.name}: what it knows", known, KNOWLEDGE)
        if self.defense.epsilon == 0 and not self.defense.stateful:  # it answers with the clean posteriors
            object.__setattr__(self, "defense", Undefended())
        self.defense.check(self.victim)
        self.attack.check(self.victim)
        self.attack.check_defense(self.defense)
        self.knockoff.check(self.victim)
        self._check_online()
        self._check_columns()
        if self.knockoff.architecture is None:
            own = replace(self.knockoff, architecture=self.victim.architecture)
            object.__setattr__(self, "knockoff", own)

    def _check_online(self) -> None:
        """Raise MadError for a recovery, surrogate or probe that does not work with this kind of attack.

        A recovery that learns from a whole transfer set, or drops some of it, needs an attack without
        ``recovers_early``. A white-box surrogate and the probe need an attack that is ``online``.
        """
        if self.attack.recovers_early and (self.recovery.learns or self.recovery.filters):
            needs = "learns from a whole transfer set" if self.recovery.learns else "drops answers of a transfer set"
            raise MadError(
                f"recovery {self.recovery.name} {needs}, attack {self.attack.name} trains "
                "before it has one: take another of the two"
            )
        if "the victim's clean answers" in self.recovery.knows and not self.attack.verbatim:
            raise MadError(
                f"recovery {self.recovery.name} compares answers with the clean ones to the same images, which attack "
                f"{self.attack.name} does not keep: take another of the two"
            )
        if self.attack.online:
            return
        for what, wanted in (
            *((f"surrogate {each.name}", getattr(each, "white_box", False)) for each in surrogates(self.defense)),
            ("probe=true", self.probe),
        ):
            if wanted:
                raise MadError(
                    f"{what} reads a network that is trained while it queries, "
                    f"attack {self.attack.name} trains none: take attack=online"
                )

    def _check_columns(self) -> None:
        """Raise MadError if two parts of the cell add a column of one name."""
        parts = {
            f"{name} {getattr(self, name).name}": getattr(self, name) for name in ("defense", "attack", "recovery")
        }
        merged({part: {column.name: None for column in each.schema} for part, each in parts.items()})

    @property
    def reference(self) -> Cell:
        """The same cell without a defense, which every figure compares with."""
        words = [word for word in shlex.split(self.overrides or "") if not word.lstrip("+~").startswith("defense")]
        overrides = shlex.join([*words, "defense=none"]) if self.overrides is not None else None
        return replace(self, defense=Undefended(), overrides=overrides)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that determines this cell's numbers, 16 hexadecimal digits; computed once."""
        owned = self.owned_contents()
        return digest([describe(self), owned] if owned else describe(self))

    @cached_property
    def comparison_group(self) -> str:
        """A hash of everything but the defense and the seeds; the cells of one group are drawn in one figure."""
        description = describe(self)
        del description["defense"], description["seed"], description["victim"]["seed"]
        return digest(description)

    @cached_property
    def theft_group(self) -> str:
        """A hash of the victim, but for its seed, and of the pool with its images; such cells can share a board."""
        victim, contents = describe(self.victim), None
        del victim["seed"]
        if self.pool is not None:
            contents = checked.pool_contents(self.pool, self.victim.dataset.shape, self.victim.name, False)
        return digest([victim, describe(self.pool), contents])

    @cached_property
    def defense_group(self) -> str:
        """A hash of the defense but for its strength, and of the images that it owns: the points of one curve."""
        defense = describe(self.defense)
        defense.pop(self.defense.strength_parameter, None)
        return digest([defense, self.owned_contents()])

    @property
    def victim_seed(self) -> int | None:
        """The seed of a victim that is trained with another seed than the cell's; else None."""
        return None if self.victim.given is not None or self.victim.seed == self.seed else self.victim.seed

    @property
    def knows(self) -> tuple[str, ...]:
        """What the adversary is given beside the answers, of ``mad.knowledge.KNOWLEDGE``."""
        return tuple(dict.fromkeys((*self.recovery.knows, *self.attack.knows)))

    @property
    def pool_name(self) -> str:
        """The name of the pool; ``none`` if there is no pool."""
        return "none" if self.pool is None else self.pool.name

    def adversary(
        self, device: torch.device, store: Store | None = None, clean: Callable[[Tensor], Tensor] | None = None
    ) -> Adversary:
        """Return the adversary, given the knowledge that its recovery and its attack declare.

        Args:
            device: where it computes.
            store: stores the networks that it trains, and its checkpoints; None stores nothing.
            clean: answers images as the undefended victim does, for a recovery that knows its clean answers.
        """
        dataset, knows = self.victim.dataset, self.knows
        keeps = None if self.defense.stateful else store  # a stateful defense's state is not saved
        return Adversary(
            knockoff=self.knockoff,
            recovery=self.recovery,
            shape=dataset.shape,
            classes=dataset.classes,
            seed=self.seed,
            device=device,
            labels=self.labels() if self.attack.labelled else None,
            defense=self.defense.settled(self.victim) if "the defense" in knows else None,
            victim=self.victim if "the victim's data" in knows else None,
            clean=clean if "the victim's clean answers" in knows else None,
            store=store,
            checkpoint=None if keeps is None else Checkpoint(keeps.outputs, self.path.parent),
        )

    def labels(self) -> Tensor:
        """Return the label of each image of the pool, int64 (N,); its classes need not be the victim's.

        Raises:
            UnfitError: if the pool has no labels, or fewer than two classes.
        """
        pool, found = self.pool, torch.zeros(0)
        if isinstance(pool, Labelled):
            found = SHARED.get(("labels", identity(pool), str(self.contents())), lambda: checked.pool_labels(pool))
        if len(found.unique()) < 2:
            raise UnfitError(
                f"attack {self.attack.name} chooses among classes, pool {self.pool_name} has none: take another pool"
            )
        return found

    def contents(self) -> Any:
        """Return what identifies the pool's data in a fingerprint, if the pool's fields do not; else None."""
        if self.pool is None:
            return None
        return checked.pool_contents(self.pool, self.victim.dataset.shape, self.victim.name, self.attack.labelled)

    def owned_contents(self) -> list[Any]:
        """Return what the defense's fields do not say: the data of its pools, and how its surrogates are trained."""
        shape, name = self.victim.dataset.shape, self.victim.name
        found = [checked.pool_contents(pool, shape, name, False) for pool in owned_pools(self.defense)]
        trained = [each for each in surrogates(self.defense) if isinstance(each, Surrogate)]
        found += [describe(each.training(self.victim)) for each in trained]
        return [each for each in found if each is not None]

    @property
    def asked_by(self) -> tuple[Any, ...]:
        """What determines the transfer set of an attack whose queries do not depend on the answers."""
        owned = self.owned_contents()
        return (self.victim, self.pool, self.contents(), self.defense, *owned, self.attack, self.seed)

    @property
    def path(self) -> Path:
        """The path of this cell's record, relative to the outputs folder."""
        parts = (self.victim.name, self.defense.name, self.attack.name, self.fingerprint)
        return Path("runs", *parts, "record.json")


def surrogates(defense: Defense) -> list[Any]:
    """Return the surrogates inside a defense, one for each of its parts that has one."""
    found = [getattr(part, "surrogate", None) for part in defense.components()]
    return [each for each in found if each is not None]


def owned_pools(defense: Defense) -> list[Pool]:
    """Return the pools that a defense's parts own: their outliers, and what their surrogates learn from."""
    found = [getattr(part, "outliers", None) for part in defense.components()]
    found += [getattr(each, "pool", None) for each in surrogates(defense)]
    return [each for each in found if each is not None]


def about(cell: Cell) -> Record:
    """Return the columns of a record that describe the cell, except for the training of the knockoff."""
    return {
        "victim": cell.victim.name,
        "dataset": cell.victim.dataset.name,
        "architecture": cell.victim.network_name,
        "class_names": cell.victim.class_names,
        "pool": cell.pool_name,
        "defense": cell.defense.name,
        "defense_settings": settings(cell.defense),
        "defense_group": cell.defense_group,
        "epsilon": cell.defense.epsilon,
        "strength_parameter": cell.defense.strength_parameter,
        "strength": cell.defense.strength,
        "surrogate": " + ".join(each.name for each in surrogates(cell.defense)) or None,
        "attack": cell.attack.name,
        "attack_settings": settings(cell.attack),
        "recovery": cell.recovery.name,
        "recovery_settings": settings(cell.recovery),
        "recovery_knows": " and ".join(cell.knows),
        "victim_epochs": None if cell.victim.given is not None else cell.victim.trainer.epochs,
        "victim_validation": cell.victim.validation or None,
        "victim_seed": cell.victim_seed,
        "seed": cell.seed,
        "theft_group": cell.theft_group,
        "comparison_group": cell.comparison_group,
        "fingerprint": cell.fingerprint,
        "overrides": cell.overrides or "",
        "version": __version__,
        "torch": torch.__version__,
    }

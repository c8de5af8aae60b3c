"""One cell of an experiment, from the victim to the record.

    victim -> defense -> black-box API -> attack (transfer set) -> recovery -> knockoff -> evaluation -> record

Objects in, a record out: no config, no command line.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mad import __version__, plugins
from mad.adversary import Adversary
from mad.api import BlackBox
from mad.architectures import imagenet
from mad.attacks import Attack
from mad.cache import Cache
from mad.datasets import Images, Labelled, Pool, Split, checked
from mad.defenses import Context, Defense, Undefended
from mad.errors import MadError, check_name, check_number
from mad.evaluation import theft, utility
from mad.gradient_probe import GradientProbe
from mad.knockoff import Knockoff
from mad.progress import err
from mad.recoveries import Recovery
from mad.storage.files import Record
from mad.storage.fingerprint import describe, digest, identity, name_of, settings
from mad.storage.store import COLUMNS, Store, check
from mad.victim import Victim

SHARED = Cache()
MEASURED = (  # a record's columns that are in neither ``facts`` nor ``COLUMNS``
    *("queries", "l1_max", "answer_entropy", "learned", "l1_mean_queries", "target_entropy"),
    *("initial_weights", "device", "threads", "precision", "overrides", "uses"),
)


@dataclass(frozen=True)
class Cell:
    """Everything that determines a record's numbers."""

    victim: Victim
    pool: Pool
    defense: Defense
    attack: Attack
    recovery: Recovery
    knockoff: Knockoff
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("seed", self.seed, 0, 2**62, whole=True)
        for part in ("victim", "pool", "defense", "attack", "recovery"):
            check_name(f"{part}.name", getattr(self, part).name)
        if self.defense.epsilon == 0:  # whatever the defense, its answers are the clean ones
            object.__setattr__(self, "defense", Undefended())
        self.defense.check(self.victim)
        self.attack.check(self.victim)
        surrogate: Any = getattr(self.defense, "surrogate", None)
        if getattr(surrogate, "white_box", False) and not self.attack.online:
            raise MadError(
                f"surrogate {surrogate.name} reads a network that is trained while it queries, "
                f"attack {self.attack.name} trains none: take attack=online"
            )
        if self.knockoff.architecture is None:
            own = replace(self.knockoff, architecture=self.victim.architecture)
            object.__setattr__(self, "knockoff", own)

    @property
    def reference(self) -> Cell:
        """The same theft with no defense."""
        return replace(self, defense=Undefended())

    @cached_property
    def fingerprint(self) -> str:
        """The name of everything that determines this cell's numbers, as it was when it was first asked for."""
        return digest(describe(self))

    @cached_property
    def comparison_group(self) -> str:
        """The name of everything but the defense and the seeds: cells of one comparison group belong in one figure."""
        description = describe(self)
        del description["defense"], description["seed"], description["victim"]["seed"]
        return digest(description)

    def adversary(self, device: torch.device) -> Adversary:
        """Return who steals."""
        dataset = self.victim.dataset
        parts = (self.knockoff, self.recovery, dataset.shape, dataset.classes, self.seed, device)
        return Adversary(*parts, self.labels() if self.attack.labelled else None)

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
                f"attack {self.attack.name} chooses among classes, pool {pool.name} has none: take another pool"
            )
        return found

    def contents(self) -> Any:
        """Return what stands for the pool's data, where its own description does not."""
        return checked.pool_contents(self.pool, self.victim.dataset.shape, self.victim.name, self.attack.labelled)

    @property
    def path(self) -> Path:
        """Where this cell's record lies, below the outputs folder."""
        parts = (self.victim.name, self.defense.name, self.attack.name, self.fingerprint)
        return Path("runs", *parts, "record.json")


def run(
    cell: Cell, store: Store, device: torch.device, *, force: bool = False, overrides: str = ""
) -> tuple[Record, bool]:
    """Return the cell's record, and whether it was kept from an earlier run.

    Args:
        cell: what to run.
        store: what is kept.
        device: where to compute.
        force: make it again.
        overrides: of the command line that makes it, for the record.
    """
    kept = None if force else store.find(cell.path)
    if kept is not None:
        return kept, True
    with store.noting_failure(cell.path):
        images, budget, test = gather(cell)  # refuses what cannot be run before anything is trained or written
        check(facts(cell) | {"overrides": overrides}, "the cell")

        def make() -> Record:
            return {**steal(cell, images, budget, test, store, device), "overrides": overrides}

        return store.record(cell.path, make, force=force)


def gather(cell: Cell) -> tuple[Images, int, Split]:
    """Return the adversary's images, uint8 (N, C, H, W), how many queries it makes, and the victim's test split.

    Raises:
        MadError: if the images or the test split are not right, the victim cannot take the images, or the budget is
            above their number.
    """
    pool, dataset, taker = cell.pool, cell.victim.dataset, cell.victim.name
    key = ("images", identity(pool), tuple(dataset.shape), str(cell.contents()))
    images = SHARED.get(key, lambda: checked.pool(pool, dataset.shape, taker))
    if cell.attack.labelled and len(cell.labels()) != len(images):
        raise MadError(
            f"pool {pool.name} has {len(images)} images and {len(cell.labels())} labels: give it one an image"
        )
    try_networks(cell)
    test = SHARED.get(("test", identity(dataset)), lambda: checked.split(dataset, "test"))
    return images, cell.attack.affordable(images, pool.name), test


def try_networks(cell: Cell) -> None:
    """Try each network that the cell is going to build, before anything is trained.

    Raises:
        MadError: if one does not take the victim's images to logits over its classes.
    """
    dataset = cell.victim.dataset
    surrogate: Any = getattr(cell.defense, "surrogate", None)
    parts = {
        f"architecture of victim {cell.victim.name}": cell.victim.architecture,
        "knockoff/architecture": cell.knockoff.architecture,
        "defense/surrogate/architecture": getattr(surrogate, "architecture", None),
    }
    for part, make in parts.items():
        if make is not None:
            who, size = f"{part}, {name_of(make)},", (tuple(dataset.shape), dataset.classes)
            SHARED.get(("tried", digest(describe(make)), size), functools.partial(plugins.fits, who, make, *size))


def steal(cell: Cell, images: Images, budget: int, test: Split, store: Store, device: torch.device) -> Record:
    """Train or load the victim, defend it, steal it within the budget, and score both sides.

    What an earlier cell of this process asked the same networks is remembered: ``seconds_queries`` is then smaller.
    """
    loaded = begun(cell)  # before anything is trained
    model, seconds_victim = store.victim(cell.victim, device)
    adversary = cell.adversary(device)
    context = Context(cell.victim, model, cell.seed, device, store, SHARED, adversary)
    served = cell.defense.serve(context)
    if not isinstance(served, torch.nn.Module):
        raise MadError(f"defense {cell.defense.name}: serve must return a torch.nn.Module, got {plugins.kind(served)}")
    own = cell.defense.facts(context)
    check(own, f"defense {cell.defense.name}", {*facts(cell), *COLUMNS, *MEASURED})
    defense = cell.defense.prepared(replace(context, model=served))
    victim = context.remembered(model, cell.victim.architecture)
    witness = GradientProbe(adversary, test, budget) if cell.attack.online else None
    api = BlackBox(victim if served is model else served, defense, cell.victim.dataset.shape, budget, device, witness)

    start = time.perf_counter()
    transfer = cell.attack.spend(api, images, adversary)
    check(transfer.facts, f"attack {cell.attack.name}")
    queried = time.perf_counter()
    stolen = transfer.stolen or adversary.train(transfer)
    trained = time.perf_counter()

    return {
        **facts(cell),
        "budget": budget,
        "queries": api.queries,
        **utility(api, test, None if served is model else victim, device),
        **theft(stolen, victim, test, device),
        "learned": adversary.learned(stolen, transfer),
        "l1_mean_queries": api.l1_mean,
        "target_entropy": api.target_entropy,
        "chance": 1 / cell.victim.dataset.classes,
        "seconds_victim": seconds_victim,
        "seconds_queries": queried - start,
        "seconds_knockoff": trained - queried,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": cell.knockoff.trainer.arithmetic(device),
        "initial_weights": loaded,
        **own,
        **({} if witness is None else witness.facts()),
        **transfer.facts,
    }


def begun(cell: Cell) -> str | None:
    """Return what of a knockoff's initial weights is loaded, and say so; None where there are none.

    Raises:
        MadError: if they are not fit to be loaded.
    """
    if cell.knockoff.initial_weights is None:
        return None
    with imagenet.left_out():
        network = cell.victim.untrained(cell.knockoff.architecture, seed=cell.seed, purpose="knockoff")
    loaded = cell.knockoff.start(network)
    err.print(f"knockoff.initial_weights={cell.knockoff.initial_weights}: {loaded}", soft_wrap=True, markup=False)
    return loaded


def facts(cell: Cell) -> dict[str, Any]:
    """Return the columns that say what a record is of."""
    return {
        "victim": cell.victim.name,
        "dataset": cell.victim.dataset.name,
        "architecture": name_of(cell.victim.architecture),
        "pool": cell.pool.name,
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
        "knockoff_epochs": cell.knockoff.trainer.epochs,
        "knockoff_optimizer": cell.knockoff.trainer.optimizer,
        "knockoff_learning_rate": cell.knockoff.trainer.learning_rate,
        "knockoff_schedule": cell.knockoff.trainer.schedule,
        "knockoff_min_steps": cell.knockoff.trainer.min_steps,
        "victim_epochs": cell.victim.trainer.epochs,
        "seed": cell.seed,
        "comparison_group": cell.comparison_group,
        "fingerprint": cell.fingerprint,
        "version": __version__,
        "torch": torch.__version__,
    }

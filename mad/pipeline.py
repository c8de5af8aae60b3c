"""One cell of an experiment, from the victim to the record.

    victim -> defense -> black-box API -> attack (transfer set) -> recovery -> knockoff -> evaluation -> record

Objects in, a record out: no config, no command line.
"""

from __future__ import annotations

import functools
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mad import __version__, plugins, schema
from mad.adversary import Adversary
from mad.api import BlackBox
from mad.architectures import imagenet
from mad.attacks import Attack, Stolen, TransferSet
from mad.cache import Cache
from mad.datasets import Images, Labelled, Pool, Split, checked
from mad.defenses import Defense, Undefended
from mad.deployment import Deployment, deploy
from mad.errors import MadError, check_flag, check_name, check_number
from mad.evaluation import theft, utility
from mad.gradient_probe import SCHEMA, GradientProbe
from mad.knockoff import Knockoff
from mad.progress import err
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
    """

    victim: Victim
    pool: Pool | None
    defense: Defense
    attack: Attack
    recovery: Recovery
    knockoff: Knockoff
    seed: int = 0
    probe: bool = field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        check_number("seed", self.seed, 0, 2**62, whole=True)
        check_flag("probe", self.probe)
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
        if self.attack.online and self.recovery.learns:
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
        return replace(self, defense=Undefended())

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
        images, budget, test = inputs(cell)  # refuses what cannot be run before anything is trained or written
        schema.check({**about(cell), "overrides": overrides}, "the cell")

        def make() -> Record:
            return {**made(cell, images, budget, test, store, device, force), "overrides": overrides}

        found = store.record(cell.path, make, force=force)
        Checkpoint(store.outputs, cell.path.parent).clear()
        return found


def inputs(cell: Cell) -> tuple[Images | None, int, Split]:
    """Return the adversary's images, uint8 (N, C, H, W), how many queries it makes, and the victim's test split.

    Raises:
        MadError: if the images or the test split are not right, the victim cannot take the images, or the budget is
            above their number.
    """
    dataset = cell.victim.dataset
    images = None if cell.pool is None else pool_images(cell, cell.pool)
    try_networks(cell)
    test = SHARED.get(("test", identity(dataset)), lambda: checked.split(dataset, "test"))
    return images, cell.attack.affordable(images, cell.pool_name), test


def pool_images(cell: Cell, pool: Pool) -> Images:
    """Return the images of a cell's pool, and check that there are as many labels where the attack goes by those."""
    shape = tuple(cell.victim.dataset.shape)
    key = ("images", identity(pool), shape, str(cell.contents()))
    images = SHARED.get(key, lambda: checked.pool(pool, cell.victim.dataset.shape, cell.victim.name))
    if cell.attack.labelled and len(cell.labels()) != len(images):
        raise MadError(
            f"pool {pool.name} has {len(images)} images and {len(cell.labels())} labels: give it one an image"
        )
    return images


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


def made(
    cell: Cell, images: Images | None, budget: int, test: Split, store: Store, device: torch.device, force: bool
) -> Record:
    """Train or load the victim, defend it, steal it within the budget, and score both sides.

    What an earlier cell of this process asked the same networks is cached: ``seconds_queries`` is then smaller.
    """
    loaded = initial_weights(cell)  # before anything is trained
    adversary = cell.adversary(device, store)
    live = (lambda: adversary.live) if cell.attack.online else None
    api = deploy(cell.victim, cell.defense, seed=cell.seed, store=store, device=device, cache=SHARED, live=live)
    probe = GradientProbe(adversary, test, budget) if cell.probe else None
    stolen, asked = queried(cell, api, images, budget, adversary, store, probe, force)

    start, network, transfer = time.perf_counter(), stolen.network, stolen.transfer
    if transfer is not None:
        adversary = adversary.learned_from(transfer)
        network = network or adversary.train(transfer)
    assert network is not None  # Attack.spend sees to it
    seconds = time.perf_counter() - start
    trainer = stolen.trainer or cell.knockoff.trainer
    return schema.merged(
        {
            "the cell": about(cell),
            "the knockoff": {
                "knockoff_epochs": trainer.epochs,
                "knockoff_optimizer": trainer.optimizer,
                "knockoff_learning_rate": trainer.learning_rate,
                "knockoff_schedule": trainer.schedule,
                "knockoff_min_steps": trainer.min_steps,
                "initial_weights": loaded,
                "precision": trainer.arithmetic(device),
            },
            "the run": {
                "budget": budget,
                "chance": 1 / cell.victim.dataset.classes,
                "seconds_victim": api.seconds,
                "seconds_knockoff": seconds,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                "threads": torch.get_num_threads(),
                "learned": None if transfer is None else adversary.learned(network, transfer),
            },
            "the API": asked,
            "utility": utility(api.session(), test, None if api.served is api.model else api.model, device),
            "theft": theft(network, api.model, test, device),
            f"defense {cell.defense.name}": api.columns,
            f"attack {cell.attack.name}": stolen.columns,
            "the gradient probe": {} if probe is None else probe.columns(),
        }
    )


def queried(
    cell: Cell,
    deployment: Deployment,
    images: Images | None,
    budget: int,
    adversary: Adversary,
    store: Store,
    probe: GradientProbe | None,
    force: bool,
) -> tuple[Stolen, Record]:
    """Return what the attack brings home, and what the API counted of it.

    Where what is asked does not depend on the answers, these are kept: a further recovery or knockoff asks nothing.
    """

    def spend() -> tuple[Stolen, Record]:
        api = deployment.session(budget, probe)
        start = time.perf_counter()
        # Images that nobody asks about twice are not worth hashing.
        with SHARED.paused() if cell.attack.depends_on_answers else nullcontext():
            stolen = cell.attack.spend(api, images, adversary)
        return stolen, counted(api) | {"seconds_queries": time.perf_counter() - start}

    if cell.attack.depends_on_answers or images is None:
        return spend()

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        stolen, asked = spend()
        transfer = stolen.transfer
        if transfer is None or transfer.images is not images or stolen.network is not None:
            raise MadError(
                f"attack {cell.attack.name} says that its queries do not depend on the answers, so it must return the "
                "pool's images and no network"
            )
        tensors = {"rows": transfer.rows, "answers": transfer.answers}
        return tensors, {"asked": asked, "columns": dict(stolen.columns)}

    parts = (cell.victim, cell.pool, cell.contents(), cell.defense, cell.attack, cell.seed)
    found, told = store.transfer(cell.victim.name, parts, make, force=force)
    transfer = TransferSet(images, found["rows"], found["answers"])
    plugins.transferred(f"the kept transfer set of {cell.pool_name}", transfer, adversary.shape, adversary.classes)
    return Stolen(transfer=transfer, columns=told["columns"]), told["asked"]


def counted(api: BlackBox) -> Record:
    """Return what an API counted of its queries."""
    return {"queries": api.queries, "l1_mean_queries": api.l1_mean, "target_entropy": api.target_entropy}


def initial_weights(cell: Cell) -> str | None:
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
        "version": __version__,
        "torch": torch.__version__,
    }


__all__ = ["SCHEMA", "SHARED", "Cell", "about", "inputs", "run"]

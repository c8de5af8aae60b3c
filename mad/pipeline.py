"""One cell of an experiment, from the victim to the record.

    victim -> defense -> black-box API -> attack (transfer set) -> recovery -> knockoff -> evaluation -> record

It takes objects and returns a record; it reads no config and no command line.
"""

from __future__ import annotations

import functools
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mad import export, plugins, schema
from mad.adversary import Adversary
from mad.api import BlackBox
from mad.architectures import imagenet
from mad.attacks import Stolen, TransferSet
from mad.attacks.base import drawn
from mad.cell import SHARED, Cell, about, owned_pools, surrogates
from mad.context import Context
from mad.datasets import Images, Pool, Split, checked
from mad.datasets.checked import say
from mad.datasets.overlap import warning
from mad.defenses import Defense
from mad.deployment import Deployment, deploy
from mad.errors import MadError
from mad.evaluation import theft, utility
from mad.gradient_probe import GradientProbe
from mad.progress import err
from mad.recoveries import Recovery
from mad.schema import Record
from mad.storage.checkpoint import Checkpoint
from mad.storage.fingerprint import describe, digest, identity, name_of
from mad.storage.store import Store
from mad.training import extras


def run(
    cell: Cell, store: Store, device: torch.device, *, force: bool = False, exported: Path | None = None
) -> tuple[Record, bool]:
    """Return the cell's record, and whether it was loaded from an earlier run.

    Args:
        cell: the cell to run.
        store: the outputs folder, where records, networks and transfer sets are stored.
        device: where to compute.
        force: run the cell again even if its record exists.
        exported: a folder for the stolen model; a record that is kept without it is made again, by the kept transfer
            set if there is one. None keeps no stolen model.

    Raises:
        MadError: if the cell cannot be run; or if its model cannot be exported, which costs no record.
    """
    kept = None if force else store.find(cell.path)
    if kept is not None and (exported is None or export.holds(exported, cell.fingerprint)):
        return kept, True
    networks: list[tuple[nn.Module, Any]] = []
    if exported is not None:
        export.check(exported, cell.knockoff.architecture, cell.fingerprint)
    if kept is not None:
        say(f"the record {cell.fingerprint} is kept, its stolen model is not in {exported}: it is trained again")
    with store.noting_failure(cell.path):
        images, budget, test = inputs(cell)  # raises if the cell cannot run, before anything is trained or written
        schema.check(about(cell), "the cell")
        make = functools.partial(made, cell, images, budget, test, store, device, force, networks)
        found = store.record(cell.path, make, force=force or kept is not None)
        if exported is not None and not networks:  # another process has made the record meanwhile
            found = store.record(cell.path, make, force=True)
        Checkpoint(store.outputs, cell.path.parent).clear()
    if exported is not None:
        export.write_model(exported, *networks[-1], cell.victim.dataset, found[0])
        say(f"the stolen model is in {exported}")
    return found


def inputs(cell: Cell) -> tuple[Images | None, int, Split]:
    """Return the adversary's images, its query budget, and the victim's test split.

    The images are uint8 (N, C, H, W), or None if the attack needs no pool.

    Raises:
        MadError: if the images or the test split are not valid, if a network does not fit the victim's images and
            classes, or if the pool has too few images for the budget.
    """
    dataset = cell.victim.dataset
    images = None if cell.pool is None else pool_images(cell, cell.pool)
    try_networks(cell)
    test = SHARED.get(("test", identity(dataset)), lambda: checked.split(dataset, "test"))
    both = ("in both", identity(dataset), identity(cell.pool), str(cell.contents()))
    of = f"the test split of victim {cell.victim.name}"
    if images is not None and (told := SHARED.get(both, lambda: warning(cell.pool_name, images, of, test.images))):
        say(told)
    warn_of_shared_pools(cell)
    cell.attack.load(cell.victim)
    return images, cell.attack.affordable(images, cell.pool_name), test


def warn_of_shared_pools(cell: Cell) -> None:
    """Say so if a defense trains on the kind of images that the adversary asks about: no real defender can."""
    if cell.pool is not None and cell.pool.name in [pool.name for pool in owned_pools(cell.defense)]:
        trained = f"warning: defense {cell.defense.name} trains on images of {cell.pool.name}, the adversary's pool"
        say(f"{trained}: a real adversary asks about what the defender has not seen")


def pool_images(cell: Cell, pool: Pool) -> Images:
    """Return the images of a cell's pool; if the attack uses labels, check that there is one per image."""
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
        MadError: if one does not map the victim's images to logits over its classes.
    """
    dataset = cell.victim.dataset
    parts = [
        (f"architecture of victim {cell.victim.name}", cell.victim.architecture),
        ("knockoff/architecture", cell.knockoff.architecture),
        *(("defense/surrogate/architecture", getattr(each, "architecture", None)) for each in surrogates(cell.defense)),
    ]
    for part, make in parts:
        if make is not None:
            who, size = f"{part}, {name_of(make)},", (tuple(dataset.shape), dataset.classes)
            SHARED.get(("tried", digest(describe(make)), size), functools.partial(plugins.fits, who, make, *size))


def made(
    cell: Cell,
    images: Images | None,
    budget: int,
    test: Split,
    store: Store,
    device: torch.device,
    force: bool,
    networks: list[tuple[nn.Module, Any]],
) -> Record:
    """Train or load the victim, defend it, steal it within the budget, and return the record with both sides' scores.

    The stolen model and its architecture are appended to ``networks``.

    Logits that an earlier cell of this process computed are cached, so ``seconds_queries`` may be smaller.
    """
    loaded = initial_weights(cell)  # before anything is trained
    if force or store.outdated(cell.path.parent):
        Checkpoint(store.outputs, cell.path.parent).clear()
    adversary = cell.adversary(device, store, lambda some: api.clean(some))  # called once the API is deployed
    live = (lambda: adversary.live) if cell.attack.online else None
    api = deploy(cell.victim, cell.defense, seed=cell.seed, store=store, device=device, cache=SHARED, live=live)
    cell.victim.examine(api.model, test, device)
    probe = GradientProbe(adversary, test, budget) if cell.probe else None
    stolen, asked, seen = queried(cell, api, images, budget, adversary, store, probe, force)

    start, network, transfer = time.perf_counter(), stolen.network, stolen.transfer
    if network is not None and cell.recovery.name != "none" and not adversary.recoveries:
        raise MadError(
            f"attack {cell.attack.name} trained its network on answers as they came, without recovery "
            f"{cell.recovery.name}: take recovery=none, or let the attack use adversary.train or adversary.recovered"
        )
    if transfer is not None:
        adversary = adversary.learned_from(transfer)
        network = network or adversary.train(transfer)
    assert network is not None  # Attack.spend checks this
    seconds = time.perf_counter() - start
    networks.append((network, stolen.architecture or cell.knockoff.architecture))
    if transfer is not None:
        context = Context(cell.victim, api.served, cell.seed, device, store)
        seen = seen | own_columns(api.defense, api.defense.verify(network, transfer, context))
    trainer = stolen.trainer or cell.knockoff.trainer
    pooled = None  # a cost of the defense: of which answers the thief keeps, or asks for, nothing depends
    if images is not None and transfer is not None and transfer.images is images:
        pooled = images, drawn(images, adversary, cell.attack.images_for(budget))
    return schema.merged(
        {
            "the cell": about(cell),
            "the knockoff": {
                "knockoff_architecture": name_of(stolen.architecture or cell.knockoff.architecture),
                "knockoff_epochs": trainer.epochs,
                "knockoff_optimizer": trainer.optimizer,
                "knockoff_learning_rate": trainer.learning_rate,
                "knockoff_schedule": trainer.schedule,
                "knockoff_min_steps": trainer.min_steps,
                "knockoff_settings": extras(trainer),
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
            "utility": utility(api.fresh(), test, None if api.served is api.model else api.model, device, pooled),
            "theft": theft(network, api.model, test, device, cell.victim),
            f"defense {cell.defense.name}": {**api.columns, **seen},
            f"attack {cell.attack.name}": stolen.columns,
            f"recovery {cell.recovery.name}": recovered_columns(adversary.recovery),
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
) -> tuple[Stolen, Record, Record]:
    """Return the result of the attack, the columns that the API counted, and those of the defense about the session.

    If the attack's queries do not depend on the answers, the transfer set is stored. Cells that differ only in
    their recovery or knockoff then load it instead of querying again.
    """

    def spend() -> tuple[Stolen, Record, Record]:
        api = deployment.session(budget, probe, cell.attack.accounts)
        # Hashing images for the cache pays only if another cell asks about the same images.
        with SHARED.paused() if cell.attack.depends_on_answers or images is None else nullcontext():
            stolen = cell.attack.spend(api, images, adversary)
        return stolen, counted(api), own_columns(deployment.defense, api.defense.session_columns())

    if cell.attack.depends_on_answers or images is None:
        return spend()

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        stolen, asked, seen = spend()
        transfer = stolen.transfer
        if transfer is None or transfer.images is not images or stolen.network is not None:
            raise MadError(
                f"attack {cell.attack.name} says that its queries do not depend on the answers, so it must return the "
                "pool's images and no network"
            )
        tensors = {"rows": transfer.rows, "answers": transfer.answers}
        columns = {name: schema.number_of(value) for name, value in stolen.columns.items()}
        return tensors, {"asked": asked, "columns": columns, "session": seen}

    found, told = store.transfer(cell.victim.name, cell.asked_by, make, force=force)
    transfer = TransferSet(images, found["rows"], found["answers"])
    plugins.transferred(f"the kept transfer set of {cell.pool_name}", transfer, adversary.shape, adversary.classes)
    return Stolen(transfer=transfer, columns=told["columns"]), told["asked"], told.get("session", {})


def counted(api: BlackBox) -> Record:
    """Return the columns that an API counts: the queries, their mean L1 distance and the target entropy."""
    return {
        "queries": api.queries,
        "l1_mean_queries": api.l1_mean,
        "target_entropy": api.target_entropy,
        "seconds_queries": api.seconds,
    }


def own_columns(defense: Defense, columns: Record) -> Record:
    """Return columns that a defense adds to a record, once they are checked."""
    schema.check(columns, f"defense {defense.name}", defense.schema)
    return {name: schema.number_of(value) for name, value in columns.items()}


def recovered_columns(recovery: Recovery) -> Record:
    """Return the columns that a prepared recovery adds to a record."""
    columns = recovery.columns()
    schema.check(columns, f"recovery {recovery.name}", recovery.schema)
    return columns


def initial_weights(cell: Cell) -> str | None:
    """Return, and print on stderr, which of the knockoff's initial weights are loaded; None if it has none.

    Raises:
        MadError: if the weights cannot be loaded.
    """
    if cell.knockoff.initial_weights is None:
        return None
    with imagenet.left_out():
        network = cell.victim.untrained(cell.knockoff.architecture, seed=cell.seed, purpose="knockoff")
    loaded = cell.knockoff.start(network)
    err.print(f"knockoff.initial_weights={cell.knockoff.initial_weights}: {loaded}", soft_wrap=True, markup=False)
    return loaded

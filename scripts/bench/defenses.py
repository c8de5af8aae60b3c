"""What an answer costs behind named defenses, over the victim's forward pass and over those of all their networks.

    python scripts/bench/defenses.py --defenses adaptive_misinformation,edm --batches 32,256
    python scripts/bench/defenses.py --defenses mad --overrides "victim=cifar10 defense.epsilon=0.5 data_root=FOLDER"

Defended answers, with all checks but without the ledger of queries, are timed in turn with bare forward passes, in one
process, each after the same forward passes, which leave the caches alike; ratios are medians of the pairwise ones.
``x victim`` is over the victim's forward pass. ``x networks`` is over the forward passes of the model that is served
and of every network that the defense holds, each on the whole batch. The networks are trained by ``--steps`` steps
only, which changes no time but that of defenses that work less on sure answers: ``moved`` is the share of the answers
that they change. On CPUs with ``--threads 1``, seconds are of the processor, which other work on the machine disturbs
less. Queries are the ``pool``'s first images, those of ``test``, or ``noise``.
"""

from __future__ import annotations

import copy
import inspect
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import common

import mad
from mad.cli.command import command
from mad.datasets import batches, checked, to_unit_range
from mad.deployment import Deployment, deploy
from mad.errors import whole_numbers
from mad.export_deployment import bare

BARS = {"adaptive_misinformation": ("networks", 1.10), "gate": ("victim", 1.10)}


def parts(name: str, given: Any) -> dict[str, Any]:
    """Return the victim, the pool and the defense of a command line."""
    words = [f"trainer.min_steps={given.steps}", "trainer.epochs=1", *given.overrides.split()]
    cell = mad.load(f"defense={name}", *words)
    return {"victim": cell.victim, "pool": cell.pool, "defense": cell.defense}


def queries(victim: Any, pool: Any, device: torch.device, count: int) -> dict[str, Tensor]:
    """Return batches of each kind of query, by name."""
    shape = victim.dataset.shape
    kinds = {
        "pool": checked.pool(pool, shape, victim.name),
        "test": checked.split(victim.dataset, "test").images,
        "noise": torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)),
    }
    rows = torch.arange(count)
    found = {kind: next(batches(images, rows % len(images), count, device)) for kind, images in kinds.items()}
    return {kind: to_unit_range(images) for kind, images in found.items()}


def forwards(networks: list[nn.Module], images: Tensor) -> Callable[[], None]:
    """Return what runs the networks on images, and nothing else."""

    @torch.no_grad()
    def run() -> None:
        for network in networks:
            network(images)

    return run


def sees(network: nn.Module, images: Tensor) -> bool:
    """Return whether a network takes images: QUEEN's map and a gate's detector take features, a list nothing."""
    wanted = [each for each in inspect.signature(network.forward).parameters.values() if each.default is each.empty]
    if len(wanted) != 1:
        return False
    try:
        forwards([network], images[:1])()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def measure(name: str, deployed: Deployment, images: Tensor, kind: str, given: Any) -> dict[str, Any]:
    """Return the row of one defense, batch size and kind of query."""
    parts = [bare(value) for value in vars(deployed.defense).values()]
    held = [
        part for part in parts if isinstance(part, nn.Module) and part is not deployed.served and sees(part, images)
    ]
    bare_model, served = copy.deepcopy(deployed.model), copy.deepcopy(deployed.served)  # without hooks of a defense
    session = deployed.session()
    every = forwards([served, *held], images)
    runs: dict[str, common.Run] = {
        "before an answer": every,
        "answer": lambda: session.answer(images),
        "before the victim": every,
        "victim": forwards([bare_model], images),
        "before the networks": every,
        "networks": every,
    }
    alone = given.device == "cpu" and given.threads == 1
    clock = time.process_time if alone else time.perf_counter
    times = common.paired(runs, given.repeats, given.device, clock)
    over = {part: common.ratio(times["answer"], times[part]) for part in ("victim", "networks")}
    part, bar = BARS.get(name, ("", 0.0))
    clean, answers = session.answer(images)
    return {
        "defense": name,
        "batch": len(images),
        "queries": kind,
        "networks": 1 + len(held),
        "moved": (answers != clean).any(dim=1).float().mean().item(),
        "answer us": statistics.median(times["answer"]) / len(images) * 1e6,
        "x victim": over["victim"],
        "x networks": over["networks"],
        "bar": f"<= {bar:g} x {part}" if part else "",
        "met": over[part] <= bar if part else None,
    }


@command
def main() -> None:
    """Measure each defense."""
    texts = {"defenses": "none,mad,adaptive_misinformation", "batches": "32,256", "overrides": ""}
    given = common.arguments(__doc__, **texts, queries="pool", steps=50)
    kinds = common.several("queries", given.queries, ("pool", "test", "noise"))
    rows, sizes = [], whole_numbers("--batches", given.batches, 1)
    for name in given.defenses.split(","):
        made = parts(name, given)
        deployed = deploy(made["victim"], made["defense"], device=given.device)
        for size in sizes:
            found = queries(made["victim"], made["pool"], torch.device(given.device), size)
            for kind in kinds:
                rows.append(measure(name, deployed, found[kind], kind, given))
    title = f"a defended answer, microseconds an image, {given.overrides or 'the digits victim'}"
    common.report(title, rows, given)


if __name__ == "__main__":
    main()

"""Which recipe makes the strongest thief: several on the same answers, scored as they train.

    python scripts/thief.py victim=mnist pool=fashion_mnist attack.budget=5000 defense=mad defense.epsilon=0.95 \
        -- --seeds 0,1,2 --arms momentum-cycle-800,adam-cooldown-2400 --to docs/bench/thief.jsonl

What stands before the ``--`` is what `mad-run` takes. Each line of the file is one seed of one arm: the stolen model's
accuracy on the victim's test split after so many steps, and what an adversary could choose by: cross-entropy and
agreement with the API's answers to up to 5,000 images of its pool that it did not train on. A line that is there is not
made again. ``scripts/thief_report.py`` makes the table and the figure.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mad
from mad.attacks import TransferSet
from mad.cell import Cell
from mad.cli.command import Parser, command
from mad.cli.configs import composed
from mad.config import ELSEWHERE
from mad.datasets import batches, to_unit_range
from mad.deployment import deploy
from mad.device import choose, use_threads
from mad.errors import check_choice, whole_numbers
from mad.pipeline import inputs
from mad.seeds import generator
from mad.storage.store import Store
from mad.training import Trainer, logits_of

HELD = 5_000
MARKS = (100, 200, 400, 800, 1600, 2400, 3200, 4800)  # steps after which a model is scored, and at the end
ARMS: dict[str, dict[str, Any]] = {
    "momentum-cycle": {"optimizer": "momentum", "learning_rate": 0.04, "schedule": "one_cycle"},
    "momentum-constant": {"optimizer": "momentum", "learning_rate": 0.01, "schedule": "constant"},
    "momentum-cooldown": {"optimizer": "momentum", "learning_rate": 0.01, "schedule": "cooldown"},
    "adam-constant": {"optimizer": "adam", "learning_rate": 0.001, "schedule": "constant"},
    "adam-cycle": {"optimizer": "adam", "learning_rate": 0.001, "schedule": "one_cycle"},
    "adam-cooldown": {"optimizer": "adam", "learning_rate": 0.001, "schedule": "cooldown"},
    "adam-cooldown-decay": {"optimizer": "adam", "learning_rate": 0.001, "schedule": "cooldown", "weight_decay": 5e-4},
    "adam-cooldown-half-rate": {"optimizer": "adam", "learning_rate": 0.0005, "schedule": "cooldown"},
    "adam-cooldown-double-rate": {"optimizer": "adam", "learning_rate": 0.002, "schedule": "cooldown"},
    "adam-cooldown-pool-weights": {"optimizer": "adam", "learning_rate": 0.001, "schedule": "cooldown"},
}


def answered(cell: Cell, store: Store, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Any]:
    """Return the pool's images, the rows asked about and their answers, the budget, and the test split."""
    images, budget, test = inputs(cell)
    assert images is not None
    order = torch.randperm(len(images), generator=generator(cell.seed, "pool order"))[: budget + HELD]
    api = deploy(cell.victim, cell.defense, seed=cell.seed, store=store, device=device).session(len(order))
    answers = torch.cat([api(to_unit_range(some)) for some in batches(images, order, 500, torch.device("cpu"))])
    return images, order, answers, budget, test


def scores(
    model: nn.Module, images: Tensor, held: Tensor, answers: Tensor, test: Any, device: torch.device
) -> dict[str, float]:
    """Return how good a stolen model is: for us, and for its adversary."""
    training = model.training
    model.eval()
    accuracy = (logits_of(model, test.images, device).argmax(dim=1) == test.labels).double().mean().item()
    logits = logits_of(model, images, device, held)
    loss, same = F.cross_entropy(logits, answers).item(), (logits.argmax(1) == answers.argmax(1)).double().mean().item()
    model.train(training)
    return {"stolen": accuracy, "held_loss": loss, "held_agreement": same}


def trained(cell: Cell, arm: str, found: Any, device: torch.device) -> dict[str, Any]:
    """Return the scores of one arm after each mark."""
    images, order, answers, budget, test = found
    recipe, _, steps = arm.rpartition("-")
    epochs = round(int(steps) / -(-budget // cell.knockoff.trainer.batch_size))
    trainer = replace(cell.knockoff.trainer, **ARMS[recipe], epochs=max(1, epochs), min_steps=0)
    adversary = cell.adversary(device)
    model = adversary.untrained("knockoff")
    if recipe.endswith("pool-weights"):
        initial(cell, model, images, device)
    transfer = TransferSet(images, order[:budget], answers[:budget])
    each = -(-budget // trainer.batch_size)
    marks = {min(range(1, trainer.epochs + 1), key=lambda epoch: abs(epoch * each - mark)) for mark in MARKS}
    marks = {epoch for epoch in marks if epoch * each < trainer.epochs * each * 1.01} | {trainer.epochs}
    start, curve = time.perf_counter(), []
    run = trainer.epochs_of(
        model,
        transfer.images,
        adversary.recovered(transfer.answers),
        rows=transfer.rows,
        seed=cell.seed,
        device=device,
        task="knockoff",
    )
    for epoch in run:
        if epoch in marks:
            curve.append(
                {"steps": epoch * each, **scores(model, images, order[budget:], answers[budget:], test, device)}
            )
    return {"curve": curve, "seconds": round(time.perf_counter() - start, 1)}


def initial(cell: Cell, model: nn.Module, images: Tensor, device: torch.device) -> None:
    """Give a model, but for its last layer, the weights of one that learned the pool's own classes."""
    labels = cell.labels()
    own = cell.knockoff.architecture(shape=cell.victim.dataset.shape, classes=int(labels.max()) + 1)
    recipe: Trainer = replace(cell.victim.trainer, epochs=1, min_steps=400)
    recipe.fit(own, images, labels, seed=cell.seed, device=device, task="pool")
    state, mine = own.state_dict(), model.state_dict()
    model.load_state_dict({name: mine[name] if name.startswith("head") else state[name] for name in mine})


@command
def main() -> None:
    """Make what is missing of a file of lines."""
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else -1
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", required=True)
    parser.add_argument("--arms", required=True)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args(given[cut + 1 :])
    for arm in arguments.arms.split(","):
        check_choice("--arms: what stands before the steps", arm.rpartition("-")[0], tuple(ARMS))
        whole_numbers("--arms: the steps", arm.rpartition("-")[2], 1)
    seeds = whole_numbers("--seeds", arguments.seeds)
    words = given[: max(cut, 0)]
    key = " ".join(words)
    lines = arguments.to.read_text().splitlines() if arguments.to.exists() else []
    done = {(line["of"], line["seed"], line["arm"]) for line in map(json.loads, lines)}
    for seed in seeds:
        cell = mad.load(*(word for word in words if word.partition("=")[0] not in ELSEWHERE), f"seed={seed}")
        config = composed([*words, f"seed={seed}"])
        use_threads(config.threads)
        device, store = choose(config.device), Store(config.outputs)
        found = None
        for arm in arguments.arms.split(","):
            if (key, seed, arm) in done:
                continue
            found = found or answered(cell, store, device)
            line = {"of": key, "seed": seed, "arm": arm, **trained(cell, arm, found, device)}
            with arguments.to.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(key, seed, arm, json.dumps(line["curve"][-1]), line["seconds"], flush=True)


if __name__ == "__main__":
    main()

"""How many images a second several processes train on one device together: how many cells of a sweep a GPU should run.

    python scripts/bench/together.py --cells 1,4,12 --network vgg16_bn

Each process trains a network for an epoch that is not counted, then all of them for ``--epochs`` more on random images
of 32 pixels, cropped and flipped, by Adam. A sweep runs one cell a GPU; ``hydra.launcher.n_jobs=12`` runs twelve.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from threading import BrokenBarrierError
from typing import Any

import torch
from common import arguments, report, several

from mad.architectures.fast_resnet import FastResNet
from mad.architectures.vgg import VGG16BN
from mad.cli.command import command
from mad.errors import whole_numbers
from mad.training import Trainer

NETWORKS: dict[str, Any] = {"vgg16_bn": VGG16BN, "fast_resnet": FastResNet}
STATE: dict[str, Any] = {}


def meet(barrier: Any) -> None:
    """Keep in this process the barrier at which all begin."""
    STATE["together"] = barrier


def train(*work: Any) -> float:
    """Return what ``rate`` returns; if it fails, the other processes do not wait for this one."""
    try:
        return rate(*work)
    except Exception:
        STATE["together"].abort()
        raise


def rate(network: str, batch: int, steps: int, epochs: int, device: str) -> float:
    """Return this process's images a second, over ``epochs`` epochs after all processes have trained one."""
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (steps * batch, 3, 32, 32), dtype=torch.uint8)
    posteriors = torch.rand(len(images), 10).softmax(dim=1)
    trainer = Trainer(
        epochs=1 + epochs,
        min_steps=0,
        batch_size=batch,
        optimizer="adam",
        learning_rate=0.001,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="cooldown",
        augment="crop_flip",
        precision="auto",
    )
    where = torch.device(device)
    wait = torch.cuda.synchronize if where.type == "cuda" else lambda: None
    start = 0.0
    model = NETWORKS[network]((3, 32, 32), 10)
    for done in trainer.epochs_of(model, images, posteriors, seed=0, device=where, task="together"):
        wait()
        if done == 1:
            STATE["together"].wait()
            start = time.perf_counter()
    return epochs * len(images) / (time.perf_counter() - start)


@command
def main() -> None:
    """Print, and with --json keep, the images a second of one process and of all, for each number of processes."""
    given = arguments(__doc__, cells="1,4,12", network="vgg16_bn", batch=128, steps=100, epochs=2)
    several("network", given.network, NETWORKS)
    spawn, rows = get_context("spawn"), []
    for count in whole_numbers("--cells", given.cells, 1):
        work = (given.network, given.batch, given.steps, given.epochs, given.device)
        with ProcessPoolExecutor(count, spawn, initializer=meet, initargs=(spawn.Barrier(count),)) as pool:
            cells = [pool.submit(train, *work) for _ in range(count)]
        for error in (cell.exception() for cell in cells):
            if error is not None and not isinstance(error, BrokenBarrierError):
                raise error
        rates = [cell.result() for cell in cells]
        rows.append({"cells": count, "each": sum(rates) / count, "all": sum(rates)})
    rows = [{**row, "gain": row["all"] / rows[0]["all"]} for row in rows]
    report(f"{given.network} trained by several processes, batches of {given.batch}, images a second", rows, given)


if __name__ == "__main__":
    main()

"""Print which share of honest and of other images a gate answers honestly, by rule and alpha, as in docs/gate.md.

    python scripts/gate_rates.py fashion_mnist,kmnist_part,letters victim=mnist data_root=/data

The first word names pools, the others are overrides of mad-run. The column ``shifts`` is the mean over synthetic shifts
of training images, by which the default rule was chosen.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import mad
from mad.datasets import Images, batches, to_unit_range
from mad.defenses.gate import Gate
from mad.deployment import deploy
from mad.gate.conformal import RULES
from mad.gate.shifts import shifts
from mad.seeds import generator
from mad.storage.store import Store

COUNT = 10_000  # images of each kind
CPU = torch.device("cpu")


def main() -> None:
    """Deploy one gate, score all images once, and print a line for each rule and alpha."""
    names, words = sys.argv[1].split(","), ["defense=gate", "victim.validation=0.1", *sys.argv[2:]]
    cell = mad.load(*words)
    shape = tuple(cell.victim.dataset.shape)
    gate = deploy(cell.victim, cell.defense, seed=cell.seed, store=Store(Path("outputs"))).defense
    assert isinstance(gate, Gate)
    kinds = {"honest": cell.victim.dataset.test().images}
    for name in names:
        pool = mad.load(*words, f"pool={name}").pool
        assert pool is not None
        kinds[name] = pool.images(shape)
    found = {name: surprises(gate, images) for name, images in kinds.items()}
    rows = torch.randperm(len(cell.victim.training_split().labels), generator=generator(1, "shifted"))[:500]
    some = to_unit_range(next(iter(batches(cell.victim.training_split().images, rows, 500, CPU))))
    shifted = [surprises(gate, each) for each in shifts(some, generator(1, "shifts")).values()]
    print("rule", "alpha", *(f"{name} passes" for name in found), "shifts", sep="\t")
    for rule in RULES:
        for alpha in (0.01, 0.02, 0.05):
            one = replace(gate, alpha=alpha, rule=rule)
            one._detector = gate._detector
            one._calibrate(gate._detector)
            shares = [passing(one, *each) for each in found.values()]
            shares.append(sum(passing(one, *each) for each in shifted) / len(shifted))
            print(rule, alpha, *(f"{share:.4f}" for share in shares), sep="\t")


@torch.no_grad()
def surprises(gate: Gate, images: Images) -> tuple[Tensor, Tensor]:
    """Return the surprise of each part (N, L) and the predicted class (N,) of up to ``COUNT`` images."""
    rows = torch.randperm(len(images), generator=generator(0, "gate_rates"))[:COUNT]
    found, predicted = [], []
    for batch in batches(images, rows, 256, CPU):
        each = to_unit_range(batch)
        features, logits = gate._taps(each)
        found.append(gate._detector(each, features, logits))
        predicted.append(logits.argmax(dim=1))
    return torch.cat(found), torch.cat(predicted)


def passing(gate: Gate, found: Tensor, predicted: Tensor) -> float:
    """Return the share of images that is answered honestly."""
    return float((gate._combined(found) <= gate._threshold[gate._groups[predicted]]).double().mean())


if __name__ == "__main__":
    main()

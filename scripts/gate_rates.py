"""Print which share of honest and of other images a gate answers honestly, by rule and alpha, as in docs/gate.md.

    python scripts/gate_rates.py fashion_mnist,kmnist_part,letters victim=mnist data_root=/data figure=gate.png

The first word names pools, the others are overrides of mad-run. ``changed`` are test images as ``attack=augmented``
changes them; ``like 10`` and ``like 100`` are the first pool's as ``attack=mimicry`` restyles them. The column
``shifts`` is the mean over synthetic shifts of training images, by which the default rule was chosen. ``figure=FILE``
draws the default rule's scores and the shares that pass; ``outputs=FOLDER`` keeps the networks.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import mad
from mad.attacks.augmented import Augmented
from mad.attacks.mimicry import Mimicry
from mad.cli.command import Parser, command
from mad.datasets import Images, batches, to_unit_range
from mad.defenses.gate import Gate
from mad.deployment import deploy
from mad.figures.drawing import DASHES, HUES, INK, SMALL, sheet
from mad.gate.conformal import RULES
from mad.gate.shifts import shifts
from mad.seeds import generator
from mad.storage.store import Store

COUNT = 10_000  # images of each kind
CPU = torch.device("cpu")


@command
def main() -> None:
    """Deploy one gate, score all images once, and print a line for each rule and alpha."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    own = dict(word.split("=", 1) for word in given.overrides if word.startswith(("figure=", "outputs=")))
    rest = [word for word in given.overrides if word.partition("=")[0] not in own]
    names, words = given.pools.split(","), ["defense=gate", "victim.validation=0.1", *rest]
    cell = mad.load(*words)
    shape = tuple(cell.victim.dataset.shape)
    pools = {name: mad.load(*words, f"pool={name}").pool for name in names}  # a wrong name costs no training
    gate = deploy(cell.victim, cell.defense, seed=cell.seed, store=Store(Path(own.get("outputs", "outputs")))).defense
    assert isinstance(gate, Gate)
    kinds = {"honest": cell.victim.dataset.test().images}
    rows = torch.arange(min(COUNT, len(kinds["honest"])))
    honest = to_unit_range(next(iter(batches(kinds["honest"], rows, len(rows), CPU))))
    kinds["changed"] = Augmented().changed(honest, generator(0, "gate_rates"))
    for name, pool in pools.items():
        assert pool is not None
        kinds[name] = pool.images(shape)
    for count in (10, 100):
        thief, attack = mad.load(*words, "attack=mimicry"), Mimicry(seeds=count)
        seeds = to_unit_range(thief.adversary(CPU).labeled("attack.seeds", count)[0])
        rows = torch.randperm(len(kinds[names[0]]), generator=generator(0, "gate_rates"))[:COUNT]
        kinds[f"like {count}"] = made = torch.empty(len(rows), *shape)
        attack.restyle(kinds[names[0]], rows, seeds, 0, made)
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
    if "figure" in own:
        draw(gate, found).savefig(own["figure"], dpi=150)


def draw(gate: Gate, found: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """Draw how the combined scores are distributed, and which share of each kind passes at each alpha."""
    figure, ((left, right),) = sheet(1, 2)
    scores = {name: gate._combined(each[0]) for name, each in found.items()}
    edges = torch.linspace(0, max(float(each.max()) for each in scores.values()), 61).numpy()
    alphas = torch.logspace(-2.5, -0.3, 23).tolist()
    gates = [replace(gate, alpha=alpha) for alpha in alphas]
    for each in gates:
        each._detector = gate._detector
        each._calibrate(gate._detector)
    for place, (name, score) in enumerate(scores.items()):
        look = {"color": HUES[place % len(HUES)], "linestyle": DASHES[place % len(DASHES)], "linewidth": 1.4}
        left.hist(score.numpy(), bins=edges, density=True, histtype="step", label=name, **look)
        right.plot(alphas, [passing(each, *found[name]) for each in gates], label=name, **look)
    left.axvline(float(gate._threshold.median()), color=INK, linewidth=0.8)
    left.annotate(
        f"alpha {gate.alpha:g}",
        (float(gate._threshold.median()), 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        va="top",
        fontsize=SMALL,
    )
    left.set(xlabel="combined score of a query", ylabel="density", yscale="log")
    right.set(xlabel="alpha: most honest queries that are touched", ylabel="share answered honestly", xscale="log")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False)
    return figure


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

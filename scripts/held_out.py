"""Compare attacks' and knockoffs' settings without a test split: on pool images that the adversary never asked about.

    python scripts/held_out.py victim=mnist pool=fashion_mnist attack=jbself attack.budget=5000 -- \
        attack.step=0.05 attack.step=0.1 attack.step=0.2

What stands before the ``--`` is what `mad-run` takes, and is common to all; each argument after it (one or more
overrides, in quotes) is tried in turn. For each, the stolen model's agreement with the undefended victim on up to
10,000 held-out images of the pool. The victim is kept in ``outputs``; nothing else is.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from mad.api import BlackBox
from mad.cli.compose import cell_of
from mad.cli.configs import config_dir, register_aliases
from mad.cli.messages import report
from mad.defenses import Undefended
from mad.device import choose, use_threads
from mad.errors import MadError
from mad.pipeline import Cell, gather
from mad.seeds import generator
from mad.storage.store import Store
from mad.training import logits_of

HELD = 10_000


def agreement(cell: Cell, store: Store, device: torch.device) -> tuple[float, int]:
    """Return how often the stolen model agrees with the victim on held-out images, in [0, 1], and on how many."""
    images, budget, _ = gather(cell)
    model, _ = store.victim(cell.victim, device)
    api = BlackBox(model, Undefended(), cell.victim.dataset.shape, budget, device)
    adversary = cell.adversary(device)
    transfer = cell.attack.transfer_set(api, images, adversary)
    order = torch.randperm(len(images), generator=generator(cell.seed, "pool order"))  # as attacks draw from the pool
    asked = transfer.rows if transfer.images is images else order[: cell.attack.images_for(budget)]
    held = order[~torch.isin(order, asked)][-HELD:]
    if not len(held):
        raise MadError("the attack asks about the whole pool, which leaves none to judge by: lower attack.budget")
    stolen = transfer.stolen or adversary.train(transfer)
    theirs, ours = (logits_of(net, images, device, held).argmax(dim=1) for net in (stolen, model))
    return (theirs == ours).float().mean().item(), len(held)


def main() -> None:
    """Print one line for each setting tried."""
    given = sys.argv[1:]
    if not given or "-h" in given or "--help" in given:
        raise SystemExit(__doc__)
    cut = given.index("--") if "--" in given else len(given)
    common, tried = given[:cut], given[cut + 1 :] or [""]
    register_aliases()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        configs: list[Any] = [compose("config", [*common, *each.split(), "defense=none"]) for each in tried]
    for name, config in zip(tried, configs, strict=True):
        use_threads(config.threads)
        device = choose(config.device)
        share, images = agreement(cell_of(config), Store(config.outputs), device)
        print(f"{share:6.2%} of {images} held-out images: {name or 'as it stands'}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        report(error)
        sys.exit(1)

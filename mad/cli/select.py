r"""``mad-select``: compare settings of an attack or a knockoff without the test split.

    mad-select [--config-dir FOLDER] victim=mnist pool=fashion_mnist attack=jbself attack.budget=5000 \
        -- attack.step=0.05 attack.step=0.1

What stands before the -- is what mad-run takes, and is common to all; each argument after it (one or more overrides, in
quotes) is tried in turn, without a defense. For each, how often the stolen model agrees with the victim on the same up
to 10,000 images of the pool, which are held out before any attack chooses. The victim is kept in outputs; nothing else
is.
"""

from __future__ import annotations

import os
import shlex
import sys

from mad.cli import configs
from mad.cli.command import command
from mad.errors import MadError
from mad.progress import out


@command
def main() -> None:
    """Enter ``mad-select``: a line for each setting tried."""
    given = sys.argv[1:]
    if not given or "-h" in given or "--help" in given:
        out.print((__doc__ or "").replace("``", ""), soft_wrap=True, markup=False)
        return
    place = configs.folder_of(given)
    cut = given.index("--") if "--" in given else len(given)
    common, tried = given[:cut], given[cut + 1 :] or [""]
    if any(word.lstrip("+~").startswith("defense") for each in given for word in each.split()):
        raise MadError("mad-select compares thefts without a defense: leave defense out")
    sys.path.append(os.getcwd())  # plug-ins, as for mad-run
    every = [configs.composed([*common, *words(each), "defense=none"], place) for each in tried]
    from mad.cli.compose import cell_of  # imports torch
    from mad.cli.task import NOTHING_LEARNED
    from mad.device import choose, use_threads
    from mad.selection import held_out_agreement, spare
    from mad.storage.store import Store

    cells = [cell_of(config) for config in every]  # what cannot be run is told before anything is
    held = min(map(spare, cells))
    for name, config, cell in zip(tried, every, cells, strict=True):
        use_threads(config.threads)
        store, device = Store(configs.outputs_of(config)), choose(config.device)
        found = held_out_agreement(cell, store, device, held)
        text = f"{found.share:6.2%} of {found.images} held-out images: {name or 'as it stands'}"
        text += "" if found.learned else f" ! {NOTHING_LEARNED.removeprefix('; ')}"
        out.print(text, soft_wrap=True, markup=False)


def words(setting: str) -> list[str]:
    """Return the overrides of a setting that is tried."""
    try:
        return shlex.split(setting)
    except ValueError as error:
        raise MadError(f"{setting!r} is no setting: its quotes do not match") from error

"""``plan=true``: which cells a command would run, what is kept already, and about how long the rest takes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig
from rich.table import Table

from mad.cli import grid
from mad.cli.configs import home, outputs_of
from mad.cli.messages import one_line
from mad.cli.plan import reference_label
from mad.errors import RAISED, MadError, check_flag
from mad.progress import out

if TYPE_CHECKING:
    from mad.cell import Cell
    from mad.estimate import Estimate, Estimator

HIDDEN = ("hydra.", "hydra/", "grid=", "plan=", "outputs=", "data_root=")  # overrides that tell no cell from another
SEEDS = "seeds: one seed is an anecdote; 3 (seed=0,1,2) tell 20 points apart, 10 tell 7 (docs/thief.md)"
BUDGET = "budget: {} queries; the paper's is 50,000, and a stolen model of few queries says little of one of many"
POOL = "pool: {}; the nearer its images are to what users send, the stronger the thief: take the nearest one there is"


def wanted(config: DictConfig, overrides: Iterable[str] = ()) -> bool:
    """Return whether a command asks for a plan.

    Raises:
        MadError: if ``plan`` is neither true nor false, or swept over.
    """
    check_flag("plan", config.get("plan", False))
    for word in overrides:
        if word.startswith("plan=") and "," in word:
            raise MadError(f"{word}: plan cannot be swept over; say plan=true")
    return bool(config.get("plan", False))


def one(config: DictConfig, words: list[str]) -> None:
    """Show the plan of one cell and its reference."""
    show(config, [(words, config)], 1)


def sweep(config: DictConfig, words: list[str]) -> None:
    """Show the plan of a sweep.

    Raises:
        MadError: if the sweeper chooses its cells while it runs.
    """
    if not grid.chosen(config):
        raise MadError("plan=true: this sweeper chooses its cells while it runs, so nothing can be planned")
    jobs: list[tuple[list[str], Any]] = []
    for job in grid.jobs(config, words):
        try:
            jobs.append((job, hydra.compose("config", overrides=job)))
        except Exception as error:
            jobs.append((job, error))
    show(config, jobs, at_once(config.hydra.launcher, len(jobs)))


def at_once(launcher: Any, jobs: int) -> int:
    """Return how many cells a launcher runs at once, as far as its config tells; one if that is not known."""
    target = str(launcher._target_)
    if target.endswith(".BasicLauncher"):
        return 1
    if "submitit" in target:
        return min(jobs, int(launcher.get("array_parallelism") or jobs))
    from joblib import cpu_count, effective_n_jobs

    return int(effective_n_jobs(launcher.n_jobs) if "n_jobs" in launcher else cpu_count())


def show(config: DictConfig, jobs: list[tuple[list[str], Any]], parallel: int) -> None:
    """Print the table of cells, the estimate and three lines of advice; nothing is run and nothing is written."""
    from mad.cli.compose import cell_of  # imports torch, which a kept cell does without
    from mad.device import choose, computing
    from mad.estimate import Estimate, Estimator
    from mad.storage.record_file import known_records

    found: dict[Any, Estimate] = {}
    cells: list[Cell] = []
    with computing(config.threads):
        device = choose(config.device)
        estimator = Estimator(outputs_of(config), device, config.threads, known_records(outputs_of(config)))
        for words, composed in jobs:
            label = " ".join(word for word in words if not word.startswith(HIDDEN)) or "the default cell"
            try:
                if isinstance(composed, Exception):
                    raise composed
                cell = cell_of(composed, words)
                for key, each in estimates(estimator, composed, cell, label, set(found)):
                    found[key] = each
                cells.append(cell)
            except RAISED as error:
                found[label] = Estimate(label, error=one_line(error), left_out=grid.leaves_out(error, words))
    out.print(table(list(found.values())))
    for line in summary(list(found.values()), estimator, parallel):
        out.print(line, soft_wrap=True, markup=False)
    budgets = [f"{budget:,}" for budget in sorted({each.budget for each in found.values() if each.budget})]
    pools = sorted({cell.pool_name for cell in cells})
    for line in (SEEDS, POOL.format(", ".join(pools) or "none"), BUDGET.format(" and ".join(budgets) or "none")):
        out.print(line, soft_wrap=True, markup=False)


def estimates(
    estimator: Estimator, config: DictConfig, cell: Cell, label: str, known: set[Any]
) -> Iterable[tuple[Path, Estimate]]:
    """Yield the estimates of a cell and, before it, of its undefended reference; those that are known are left out."""
    everything, own = config.force == "all", config.force is True or lacks_export(config, cell)
    if cell.reference.path != cell.path and cell.reference.path not in known:
        yield cell.reference.path, estimator.of(reference_label(cell), cell.reference, everything=everything)
    if cell.path not in known:
        yield cell.path, estimator.of(label, cell, again=own, everything=everything)


def lacks_export(config: DictConfig, cell: Cell) -> bool:
    """Return whether the cell's stolen model is asked for and not there; it is then made again."""
    if config.export is None:
        return False
    from mad.export import STOLEN, holds

    folder = Path(home("export", config.export))
    return not any(holds(each / STOLEN, cell.fingerprint) for each in (folder, folder / cell.fingerprint))


def table(rows: list[Estimate]) -> Table:
    """Return the cells as a table: label, state, time and disk."""
    found = Table("cell", "state", "time", "disk")
    for each in rows:
        label = "".join(c if c.isprintable() else "?" for c in each.label)
        if each.error:
            found.add_row(label, f"{'left out' if each.left_out else 'cannot be run'}: {each.error}", "", "")
        elif each.kept:
            found.add_row(label, "kept", "0 s", "")
        else:
            found.add_row(label, "to do", time_of(each.seconds), disk_of(each.bytes))
    return found


def summary(rows: list[Estimate], estimator: Estimator, parallel: int) -> Iterable[str]:
    """Yield how many cells are kept and to do, how long the rest takes and where that is known from."""
    left = [each for each in rows if not each.kept and not each.error]
    total, kept = sum(each.seconds for each in left), sum(each.kept for each in rows)
    out_of_it = sum(each.left_out for each in rows)
    wrong = sum(each.error is not None for each in rows) - out_of_it
    yield (
        f"{len(rows)} cell{'' if len(rows) == 1 else 's'}: {kept} kept, {len(left)} to do"
        + (f", {out_of_it} left out" if out_of_it else "")
        + (f", {wrong} that cannot be run" if wrong else "")
    )
    if not left:
        return
    together = max(total / parallel, max(each.seconds for each in left))
    yield (
        f"about {time_of(total)} one after another"
        + (f", {time_of(together)} with {parallel} at once" if parallel > 1 else "")
        + f"; {disk_of(sum(each.bytes for each in left))} of disk for networks and transfer sets"
    )
    yield source(estimator)
    for who in sorted(estimator.unknown):
        yield f"queries to {who} are not estimated: a plan sends none"


def source(estimator: Estimator) -> str:
    """Return where the rates of an estimate come from."""
    parts = []
    if estimator.from_records:
        parts.append(f"{estimator.from_records} from kept records")
    if estimator.measured:
        parts.append(f"{estimator.measured} measured just now on this machine")
    return f"rates: {', '.join(parts)}; other work beside it, or another machine, changes them"


def time_of(seconds: float) -> str:
    """Return seconds as text."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def disk_of(size: int) -> str:
    """Return bytes as text."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"

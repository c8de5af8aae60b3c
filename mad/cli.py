"""``mad-run`` and ``mad-figures``: with ``mad.engines``, ``mad.grid`` and ``mad.status`` all that knows Hydra."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mad import engines, grid, notes, progress
from mad.errors import MadError, near
from mad.files import locked
from mad.progress import err, out

if TYPE_CHECKING:
    from pandas import DataFrame

    from mad.pipeline import Cell

PARTS = ("victim", "pool", "defense", "attack", "recovery", "knockoff")
ALIASES = {
    "knockoff/architecture": "architecture",
    "defense/surrogate/architecture": "architecture",
    "defense/surrogate/dataset": "dataset",
}
EXTRAS = {"hydra_joblib": "mad", "hydra_submitit": "mad[slurm]", "hydra_ray": "mad[ray]"}
DULL = "; the knockoff gives one answer to everything: try a smaller knockoff.learning_rate"
APART = ("outputs", "data_root", "force", "device")  # say where and how, not what
DERIVED = Path("derived")  # its lock: who reads records later writes later what is derived from them
TRACEBACK = "MAD_TRACEBACK"  # tells the jobs of a sweep that HYDRA_FULL_ERROR was the user's wish
OmegaConf.register_new_resolver("mad_jobs", engines.jobs, replace=True)
OmegaConf.register_new_resolver("mad_token", lambda: secrets.token_hex(3), use_cache=True, replace=True)
# Hydra finds the launchers' own schemas beside conf/hydra/launcher; checked or not, those files are whole.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


def config_dir() -> Path:
    """Return the folder of configs: inside an installed wheel, or at the top of a clone."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def register_aliases() -> None:
    """Let every choice of ``ALIASES`` be made in further places, with no second file."""
    for group, source in ALIASES.items():
        for file in sorted((config_dir() / source).glob("*.yaml")):
            node = {"defaults": [f"/{source}/{file.stem}@_here_"]}
            ConfigStore.instance().store(group=group, name=file.stem, node=node)


def run() -> None:
    """Enter ``mad-run``: any error is one line and exit code 1, or a traceback under HYDRA_FULL_ERROR=1."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ[TRACEBACK] = "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors over instead of printing them its own way
    # Plug-ins of the folder one stands in can be named in configs.
    sys.path.append(os.getcwd())
    register_aliases()
    try:
        hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(task)()
    except KeyboardInterrupt:
        err.print("stopped; what is finished is kept: give the same command again to go on")
        sys.exit(130)
    except Exception as error:
        report(error)
        sys.exit(1)
    finally:
        notes.end()


def task(config: DictConfig) -> None:
    """Run one cell; in a sweep, leave a note for the sweep's end instead of raising."""
    if HydraConfig.get().mode == RunMode.RUN:
        try:
            finish([cell_path(config)], Path(config.outputs))
        except Exception as error:  # raised, it would pass through Hydra, which adds lines of its own
            report(error)
            sys.exit(1)
        return
    settle(HydraConfig.get())
    sweep = Path(HydraConfig.get().sweep.dir)
    overrides, doubt = list(HydraConfig.get().overrides.task), notes.doubt(sweep)
    try:
        found = {"record": str(cell_path(config, sweep))}
    except Exception as error:
        report(error)
        found = {"error": one_line(error)}
    notes.note(sweep, HydraConfig.get().job.num, {"overrides": overrides, "doubt": doubt, **found})


def settle(hydra_config: Any) -> None:
    """Stand where the sweep was launched, whatever machine this is; draw no bars where other jobs print, too."""
    folder = hydra_config.runtime.cwd
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    if not hydra_config.launcher._target_.endswith(".BasicLauncher"):
        progress.plain = True


def cell_path(config: DictConfig, sweep: Path | None = None) -> Path:
    """Run the config's cell, and its undefended reference; return its record's path below the outputs folder."""
    from mad.device import choose, use_threads  # torch is imported only once the config is known to be right
    from mad.pipeline import run
    from mad.store import Store

    use_threads(config.threads)
    device = choose(config.device)
    cell = cell_of(config)
    if not isinstance(config.force, bool) and config.force != "all":
        raise MadError(f"force must be false, true (this cell) or all (its networks, too), got {config.force!r}")
    renewed = set[str]() if sweep is None else notes.Renewed(sweep)
    store = Store(config.outputs, renewed if config.force == "all" else None)
    with store.noting_failure(cell.path):  # its reference may fail before it is begun
        for this in in_turn(cell, sweep):
            force = config.force is True and this is cell
            record, kept = run(this, store, device, force=force, overrides=said(this is cell))
            how = "kept" if kept else f"{record['seconds_queries'] + record['seconds_knockoff']:.0f} s"
            strength = "" if record["strength"] is None else f" {record['dial']}={record['strength']:g}"
            err.print(
                f"{record['victim']} {record['defense']}{strength}: "
                f"defended {record['defended_accuracy']:.1%}, "
                f"stolen {record['stolen_accuracy']:.1%} ({how}){'' if record.get('learned', True) else DULL}",
                soft_wrap=True,
            )
    return cell.path


def said(defended: bool) -> str:
    """Return the overrides that make this job's cell, or its undefended reference, wherever ``mad-run`` is started."""
    given = {word: word.partition("=")[0].lstrip("+~") for word in HydraConfig.get().overrides.task}
    words = [word for word, key in given.items() if key not in APART]
    if not defended:
        words = [word for word in words if not given[word].startswith("defense")] + ["defense=none"]
    return shlex.join(words)


def cell_of(config: DictConfig) -> Cell:
    """Build the cell that a config describes; nothing is run."""
    from mad.pipeline import Cell

    if config.get("grid"):
        raise MadError("this experiment is a grid of cells, not one: choose no second experiment beside it, and say -m")
    parts: dict[str, Any] = {name: hydra.utils.instantiate(config[name], _convert_="all") for name in PARTS}
    return Cell(**parts, seed=config.seed)


def in_turn(cell: Cell, sweep: Path | None) -> list[Cell]:
    """Return the cell and its reference in the order to run them: the reference last, if another job has begun it."""
    if cell.reference.path == cell.path:
        return [cell]
    if sweep is None or notes.first(sweep, cell.reference.fingerprint):
        return [cell.reference, cell]
    return [cell, cell.reference]


class SweepEnd(Callback):
    """Around a sweep: a note for each job; then the table, the figures, the failures, and exit code 1 for them."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note what will be launched: a job that dies can leave no note of its own."""
        try:
            engines.go_on(config.hydra.launcher._target_)
            jobs = grid.jobs(config, list(config.hydra.overrides.task)) if grid.chosen(config) else []
            for number, each in enumerate(jobs):
                notes.note(Path(config.hydra.sweep.dir), number, {"overrides": each})
        except Exception as error:  # raised, it would become a warning of Hydra's
            report(error)
            sys.exit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the notes that the sweep's jobs left."""
        notes.end()
        every: list[Any] = []
        drawn = False
        try:
            every = notes.read(Path(config.hydra.sweep.dir))
            finish([Path(each["record"]) for each in every if "record" in each], Path(config.outputs))
            drawn = True
        except Exception as error:  # raised, it would become a warning of Hydra's
            report(error)
        for doubt in sorted({each["doubt"] for each in every if each.get("doubt")}):
            err.print(doubt, soft_wrap=True)
        failed = [each for each in every if "record" not in each]
        if failed:
            notes.list_failures(failed, every)
            err.print(f"{len(failed)} of {len(every)} cells failed; the others are kept")
        if failed or not drawn:
            sys.exit(1)


def finish(paths: list[Path], outputs: Path) -> None:
    """Print the table of some records; write ``records.csv`` and the figures of their scenes."""
    from mad import records
    from mad.table import show

    if not paths:
        return
    with locked(outputs, DERIVED):
        table = records.read(outputs)
        if table.empty:
            return
        mine = table[table.fingerprint.isin([path.parent.name for path in paths])]
        scenes = table[table.scene.isin(mine.scene)]
        if mine.empty:
            return
        reference = (scenes.defense == "none") & scenes.seed.isin(mine.seed)
        show(scenes[scenes.fingerprint.isin(mine.fingerprint) | reference])
        derive(table, scenes, outputs)


def derive(table: DataFrame, scenes: DataFrame, outputs: Path, *, paper: bool = False) -> None:
    """Write ``records.csv`` and figures, of some scenes or the paper's; the caller holds the lock of these."""
    from mad import records

    out.print(str(records.write_csv(table, outputs)), soft_wrap=True)
    if paper:
        from mad.figures.paper import write_all

        written = write_all(table, outputs)
    else:
        from mad.figures import tradeoff

        written = tradeoff.write_all(scenes, outputs / "figures")
    for file in written:
        out.print(str(file), soft_wrap=True)


def figures() -> None:
    """Enter ``mad-figures``: records to ``records.csv`` and figures; nothing is trained."""
    parser = argparse.ArgumentParser(
        prog="mad-figures",
        description="Draw every trade-off curve from the records of earlier runs; trains nothing.",
    )
    parser.add_argument("what", nargs="?", choices=["paper"], help="the paper's figures, Table 1 and ledger instead")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="the outputs folder (default: outputs)")
    arguments = parser.parse_args()
    from mad import records

    try:
        if records.read(arguments.outputs).empty:
            raise MadError(f"no record below {arguments.outputs}/runs; run mad-run first, or say --outputs FOLDER")
        with locked(arguments.outputs, DERIVED):
            table = records.read(arguments.outputs)
            derive(table, table, arguments.outputs, paper=arguments.what == "paper")
    except (MadError, OSError) as error:
        report(error)
        sys.exit(1)


def report(error: Exception) -> None:
    """Print an error's line, or its traceback where that was asked for."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    err.print(f"mad: {one_line(error)}", soft_wrap=True, markup=False)


def one_line(error: BaseException) -> str:
    """Say in one line what was expected, what came and what to do."""
    if isinstance(error, MadError):
        return " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        choices = list(error.options or [])
        return f"unknown {group or 'config'} {name!r}: choose from {', '.join(choices)}{near(name, choices)}"
    if isinstance(error, InstantiationException) and error.__cause__:
        return one_line(error.__cause__)
    if "Unknown plugin class" in str(error) or "IS THE PLUGIN INSTALLED" in str(error):
        extra = next((extra for package, extra in EXTRAS.items() if package in str(error)), "mad")
        return f"this launcher is not installed: pip install '{extra}'"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; set outputs= to a folder you may write"
    if isinstance(error.__cause__, OmegaConfBaseException) and error.__cause__.full_key:
        return unknown_key(str(error.__cause__.full_key), error.__cause__.parent_node) or plain(error)
    return plain(error)


def unknown_key(full_key: str, parent: Any) -> str | None:
    """Say which key is unknown and which is near; None if the key exists and something else is wrong."""
    above, _, key = full_key.rpartition(".")
    if not isinstance(parent, DictConfig) or key in parent:
        return None
    known = [str(name) for name in parent if name != "hydra" and not str(name).startswith("_")]
    where = f" in {above}" if above else ""
    return f"unknown key {key!r}{where}: choose from {', '.join(known)}{near(key, known)}"


def plain(error: BaseException) -> str:
    """Return the first lines of any other error, joined."""
    text = " ".join(str(error).split())[:300]
    hint = "" if os.environ.get(TRACEBACK) else " (HYDRA_FULL_ERROR=1 shows where)"
    return (
        f"{text or type(error).__name__}{hint}"
        if isinstance(error, OmegaConfBaseException) or not text
        else (f"{type(error).__name__}: {text}{hint}")
    )

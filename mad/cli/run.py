"""``mad-run``: one cell, or a sweep of them."""

from __future__ import annotations

import os
import sys

import hydra
from hydra._internal.utils import get_args_parser

from mad.cli import configs, sweep_folder
from mad.cli.command import Leave, Parser, command
from mad.cli.task import Task
from mad.environment import TRACEBACK
from mad.errors import MadError

MODES = ("run", "multirun", "cfg", "info", "help", "hydra_help", "version", "shell_completion")  # one of them at most


@command
def main() -> None:
    """Enter ``mad-run``: any error is one line and exit code 1, or a traceback under HYDRA_FULL_ERROR=1."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ[TRACEBACK] = "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing them
    # Configs can name plug-ins in the current folder.
    sys.path.append(os.getcwd())
    configs.register_aliases()
    given, sys.argv[1:] = sys.argv[1:], words(sys.argv[1:])
    try:
        with configs.quiet():
            hydra.main(config_path=str(configs.config_dir()), config_name="config", version_base="1.3")(Task())()
    except SystemExit as end:  # Hydra's own, such as after --help: Task and Sweep catch those of plug-ins
        raise Leave(end.code) from end
    finally:
        sys.argv[1:] = given
        sweep_folder.end()


def words(given: list[str]) -> list[str]:
    """Return the arguments of a command line, flags before overrides, as Hydra takes them.

    An experiment that is a sweep gets its ``-m`` here: Hydra reads this from a config, which a mistyped key spoils, and
    then reports that ``-m`` is missing instead of the key.

    Raises:
        MadError: if a flag is unknown or lacks its value, or if the folder of configs does not exist.
    """
    parser = Parser(prog="mad-run", parents=[get_args_parser()], add_help=False)
    flags, unknown = parser.parse_known_intermixed_args(given)
    if unknown:
        bare = unknown[0].lstrip("-")
        hint = f"overrides have no dashes: {bare}" if "=" in bare else "mad-run --help lists what there is"
        raise MadError(f"unknown flag {unknown[0]}: {hint}")
    place = configs.further(flags.config_dir)
    spelled = {flags.config_dir: str(place), f"--config-dir={flags.config_dir}": f"--config-dir={place}"}
    rest = [spelled.get(word, word) for word in given]
    for word in flags.overrides:
        rest.remove(word)
    chosen = [word.removeprefix("experiment=") for word in flags.overrides if word.startswith("experiment=")]
    moded = any(getattr(flags, name, None) for name in MODES) or any(
        w.startswith("hydra.mode=") for w in flags.overrides
    )
    if not moded and any(map(configs.sweeps, chosen)):
        rest.insert(0, "--multirun")
    return [*rest, *configs.quoted(flags.overrides)]  # Hydra needs the overrides together

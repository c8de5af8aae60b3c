"""One line for any error: what was expected, what came and what to do."""

from __future__ import annotations

import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from mad import foreign
from mad.cli import configs
from mad.environment import TRACEBACK
from mad.errors import MadError, UnfitError, near
from mad.progress import err

SWEPT = "is a sweep: mad-run -m runs a cell for each of its values; here give one"  # also for what takes no -m
EXTRAS = {"hydra_joblib": "mad", "hydra_submitit": "mad[slurm]", "hydra_ray": "mad[ray]"}


def report(error: BaseException) -> None:
    """Print the one line of an error; before it, its traceback if HYDRA_FULL_ERROR is set."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    err.print(f"mad: {one_line(error)}", soft_wrap=True, markup=False)


def one_line(error: BaseException) -> str:
    """Return an error's text in one line: what was expected, what was given and what to do."""
    ours = next((each for each in causes(error) if isinstance(each, MadError)), None)
    if ours is not None:
        return " ".join(str(ours).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return unknown_choice(str(error.missing_cfg_file), str(error), list(error.options or []))
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if isinstance(error, InstantiationException) and error.__cause__:
        if missing := re.match(r"Error loading '([^']*)'", str(error.__cause__)):
            return unimported(missing[1], causes(error)[-1])
        return mistaken(str(error.__cause__)) or one_line(error.__cause__)
    if "Unknown plugin class" in str(error) or "IS THE PLUGIN INSTALLED" in str(error):
        extra = next((extra for package, extra in EXTRAS.items() if package in str(error)), "mad")
        return f"this launcher is not installed: pip install '{extra}'"
    if theirs := foreign.said(error):
        return theirs
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if (merged := re.match(r"Error merging override (.*)", str(error))) and error.__cause__:
        return f"{merged[1]}: {str(error.__cause__).splitlines()[0]}"
    for each in causes(error):
        if isinstance(each, InterpolationKeyError):
            return f"{' '.join(str(each).splitlines()[0].split())}: ${{...}} stands for another key's value"
        if said := unknown_key(each):
            return said
    return composition(str(error)) or plain(error)


def unfit(error: BaseException) -> bool:
    """Return whether an error says that an adversary does not go with the victim, its data or the pool."""
    return any(isinstance(each, UnfitError) for each in causes(error))


def unimported(target: str, error: BaseException) -> str:
    """Say why a class that a config names cannot be imported: its module is not found, or fails."""
    module = target.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return f"{target} cannot be imported: a plug-in's file lies where the command is started, or is installed"
    if lacking := absent(target):
        return lacking
    where = foreign.located(error)
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"{target} cannot be imported ({why}{', ' * bool(where)}{where or ''})"


def absent(target: str) -> str | None:
    """Say which part of a class's import path its module or class does not have; None if the module is not loaded."""
    parts = target.split(".")
    loaded = [count for count in range(1, len(parts)) if ".".join(parts[:count]) in sys.modules]
    if not loaded:
        return None
    within: Any = sys.modules[".".join(parts[: loaded[-1]])]
    where = Path(getattr(within, "__file__", None) or within.__name__).name
    for part in parts[loaded[-1] :]:
        if not hasattr(within, part):
            classes = [name for name, each in vars(within).items() if isinstance(each, type)]
            return f"{where} has no {part}{near(part, classes)}: correct _target_: {target} in the YAML"
        within, where = getattr(within, part), part
    return None


def mistaken(text: str) -> str | None:
    """Return a constructor's complaint about its arguments in the words of a config; None for anything else."""
    found = re.match(r"(?:.*\.)?(\w+)\.__init__\(\) (.*)", text)
    if found and (missing := re.match(r"missing \d+ required \S+ argument\S*: (.*)", found[2])):
        return f"{found[1]} needs {missing[1]}: set it in the YAML, or give the field a default"
    if found and (extra := re.match(r"got an unexpected keyword argument ('\w+')", found[2])):
        return f"{found[1]} takes no {extra[1]}: correct the key in the YAML, or make it a field of the class"
    if takes := re.match(r"(\w+)\(\) takes no arguments", text):
        return f"{takes[1]} takes no settings: make it a dataclass, with the base class that docs/extending.md names"
    return None


def causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and its causes, the error itself first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def unknown_choice(asked: str, text: str, options: list[str]) -> str:
    """Return the message for an option that a config group does not have; it lists the options."""
    above = re.search(r"Available options in '([^']*)'", text)
    group = above[1] if above else asked.rpartition("/")[0]
    name = asked[len(group) :].lstrip("/")
    options = configs.experiments() if group == "experiment" else options
    own = "" if configs.FURTHER or group == "experiment" else "; --config-dir FOLDER adds choices of your own"
    return f"unknown {group or 'config'} {name!r}: {choose(name, options)}{own}"


def choose(name: str, known: list[str]) -> str:
    """Return the text that lists the valid choices, with those similar to an unknown name."""
    return f"choose from {', '.join(known)}{near(name, known)}" if known else "there is none to choose"


@contextmanager
def beside(own: Sequence[str]) -> Iterator[None]:
    """Name a command's own keys, too, where a key of the command line is unknown to the config."""
    try:
        yield
    except Exception as error:
        said = next(filter(None, (unknown_key(each, own) for each in causes(error))), None)
        if said is None:
            raise
        raise MadError(said) from error


def unknown_key(error: BaseException, own: Sequence[str] = ()) -> str | None:
    """Return the message for an unknown key, with a similar key; None for any other error.

    Args:
        error: what composing a config raised.
        own: keys that the command takes beside those of the config.
    """
    parent = error.parent_node if isinstance(error, OmegaConfBaseException) and error.full_key else None
    above, _, key = str(getattr(error, "full_key", "")).rpartition(".")
    if not isinstance(parent, DictConfig) or key in parent:
        return None
    known = [str(name) for name in parent if name != "hydra" and not str(name).startswith("_")]
    known += [] if above else own
    where = f" in {above}" if above else ""
    if others := configs.choices_with(str(getattr(error, "full_key", ""))):
        return f"unknown key {key!r}{where}: it is one of {', '.join(others)}; here choose from {', '.join(known)}"
    group = f"{above.replace('.', '/')}/{key}"
    if group in configs.groups():
        return f"unknown key {key!r}{where}: a part is chosen with {group}="
    add = f"; or add a line {key}: to the YAML of {above}" if above else ""
    return f"unknown key {key!r}{where}: {choose(key, known)}{add}"


def unreadable(word: str) -> str:
    """Return the message for an override that Hydra cannot parse."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word!r} is no override: it must be key=value, like defense=mad; mad-run --help lists the choices"
    if not re.fullmatch(r"[+~]*[\w$@/:-]+(\.[\w$@/:-]+)*", key):
        return f"{word!r} is no override: {key!r} is no key; expected key=value, like defense.epsilon=0.5"
    more = re.findall(r"\s[+~]*([\w/.-]+)=", value if value[:1] not in "'\"{[" else "")
    if any("." in each or each in configs.groups() for each in more):
        return f"{word!r} is several overrides in one text: give each an argument of its own"
    if value.startswith("="):
        return f"{word!r} has one = too many: say {key}{value}"
    return f"{word!r} cannot be read: {in_quotes(key, value)}; values to sweep over are a,b,c with none empty"


def in_quotes(key: str, value: str) -> str:
    """Return an override that sets a key to a string with special characters, quoted for a shell."""
    text = value.strip("'\"").replace('"', '\\"')
    said = shlex.quote(f'{key}="{text}"')
    return f"a text with special characters goes in quotes twice, {said}"


def composition(text: str) -> str | None:
    """Return a clearer message for an error of Hydra's composition of a config, if there is one."""
    if several := re.search(r"Ambiguous value for argument '(.*)'", text):
        key, _, value = several[1].partition("=")
        hint = "a number has no comma in it" if re.fullmatch(r"[\d.,]+", value) else in_quotes(key, value)
        hint = "" if key in configs.groups() else f"; {hint}"
        return f"{several[1]} {SWEPT}{hint}"
    if several := re.search(r"Sweep parameters '(.*)' requires --multirun", text):
        return f"{several[1]} {SWEPT}"
    if fixed := re.search(r"Sweeping over Hydra's configuration is not supported : '(.*)'", text):
        return f"{fixed[1]}: hydra's own settings cannot be swept over; give one value"
    if unmatched := re.search(r"Could not override '([^']*)'\. No match in the defaults list", text):
        name, known = unmatched[1], configs.groups()
        if not name:
            return "an override must be key=value, like defense=mad; got one without a key"
        if name in known:
            return f"nothing that is chosen has a {name}: choose a part that has one"
        return f"unknown choice {name!r}: {choose(name, known)}"
    if re.search(r"Config group override must be a string", text):
        return f"a choice must be a name, like defense=none, got null: choose for each of {', '.join(configs.groups())}"
    if there := re.search(r"An item is already at '([^']*)'|Multiple values for (\S+)\. To override", text):
        key = there[1] or there[2]
        return f"{key} is there already: say {key}= without the +"
    if absent := re.search(r"Could not delete (?:from config\. )?'([^']*)'", text):
        return f"{absent[1]} is not there, so ~{absent[1]} can take nothing away"
    return None


def plain(error: BaseException) -> str:
    """Return the first lines of any other error, joined."""
    text = " ".join(str(error).split())[:300]
    hint = "" if os.environ.get(TRACEBACK) else " (HYDRA_FULL_ERROR=1 shows where)"
    return (
        f"{text or type(error).__name__}{hint}"
        if isinstance(error, OmegaConfBaseException) or not text
        else (f"{type(error).__name__}: {text}{hint}")
    )

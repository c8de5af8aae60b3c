r"""``mad-serve``: a defended model behind the Open Inference Protocol v2, REST and gRPC.

    mad-serve deployment=FOLDER [settings]                 what Deployment.export wrote
    mad-serve [--config-dir FOLDER] victim=... defense=... [settings]
                                                           mad-run's words: the kept victim, or a new one
    mad-serve record=FINGERPRINT [outputs=outputs] [data_root=data] [settings]
                                                           the API of a kept record, or of its first digits
    mad-serve add-client NAME clients=FILE [budget=N] [rate=N] [operator=true]

Settings: host=127.0.0.1 port=8080 grpc_port=8081 (null: no gRPC) name=NAME clients=FILE ledger=FILE audit=FILE
shadow=true (answers stay clean) open=true (no keys, also from other machines) refuse_flagged=true (429 for thieves)
max_images=256 max_bytes=64000000 timeout=30 linger=0 waiting=4096 connections=1024 audit_bytes=100000000
audit_files=10 device=auto threads=1

--check compares answers with the benchmark's, to the bit, before a port is opened. add-client prints a new key, once.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mad.cli import configs
from mad.cli.command import command
from mad.cli.messages import beside
from mad.errors import MadError, check_there, near
from mad.progress import out
from mad.serve.book import POSTGRES
from mad.serve.settings import Settings
from mad.storage.record_file import read_record

if TYPE_CHECKING:
    from mad.deployment import Deployment

OURS = tuple(field.name for field in dataclasses.fields(Settings))
MACHINE = ("device", "threads")
PLACES = ("outputs", "data_root")  # where a record and its data lie
TEXTS = ("host", "name", "clients", "ledger", "audit", "deployment", "device", "record", *PLACES)
LIMITS = ("budget", "rate", "operator")


@command
def main() -> None:
    """Enter ``mad-serve``."""
    given = sys.argv[1:]
    if not given or "-h" in given or "--help" in given:
        out.print((__doc__ or "").replace("``", ""), soft_wrap=True, markup=False)
        return
    if given[0] == "add-client":
        add_client(given[1:])
        return
    place = configs.folder_of(given)
    given = ["check=true" if word == "--check" else word for word in given]
    flag = next((word for word in given if word.startswith("-")), None)
    if flag is not None:
        raise MadError(f"unknown flag {flag}; mad-serve --help says what it takes")
    ours = [word for word in given if word.partition("=")[0] in OURS]
    settings = Settings(**values(ours))
    rest = [word for word in given if word not in ours]
    sys.path.append(os.getcwd())  # plug-ins, as for mad-run
    installed(settings)
    keys = {word.partition("=")[0] for word in rest}
    deployment = opened(rest) if "deployment" in keys else (recorded if "record" in keys else composed)(rest, place)
    from mad.serve.server import serve
    from mad.serve.wire import say

    def started(port: int, grpc_port: int | None) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        name = settings.name or deployment.victim.name
        said = f"http://{host}:{port}/v2/models/{name}"
        said += "" if grpc_port is None else f", gRPC at {host}:{grpc_port}"
        mode = " in shadow: answers are clean" if settings.shadow else ""
        say(f"{deployment.victim.name} behind defense {deployment.defense.name}{mode}, at {said}")

    serve(deployment, settings, started)


def installed(settings: Settings) -> None:
    """Check that what serves is installed, before a victim is trained.

    Raises:
        MadError: if it is not.
    """
    needed = {"mad.serve.server": "serve"}
    if str(settings.ledger).startswith(POSTGRES):
        needed["mad.serve.postgres"] = "postgres"
    for module, extra in needed.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MadError(f"this needs {error.name or module}: pip install 'mad[{extra}]'") from error


def add_client(given: list[str]) -> None:
    """Print the key of a new client."""
    from mad.serve import clients

    names = [word for word in given if "=" not in word]
    found = values([word for word in given if "=" in word])
    unknown = [name for name in found if name not in ("clients", *LIMITS)]
    if len(names) != 1 or not isinstance(found.get("clients"), str) or unknown:
        raise MadError("say mad-serve add-client NAME clients=FILE, and what it may: budget=N rate=N operator=true")
    file = Path(configs.home("clients", found.pop("clients")))
    sys.stdout.write(clients.add(file, names[0], **found) + "\n")


def opened(words: list[str]) -> Deployment:
    """Return the exported deployment that words name."""
    found = values(words)
    for name in found:
        if name not in ("deployment", *MACHINE):
            hint = near(name, ("deployment", *MACHINE, *OURS))
            raise MadError(f"{name}= is no setting of a server that opens a deployment{hint}")
    from mad.deployment import open_deployment
    from mad.device import choose, use_threads

    use_threads(found.get("threads", 1))
    return open_deployment(configs.home("deployment", found["deployment"]), choose(found.get("device", "auto")))


def recorded(words: list[str], place: Path | None) -> Deployment:
    """Return the deployment of a kept record.

    Raises:
        MadError: if there is none, or if it cannot be made again: its overrides, or the package, are others now.
    """
    found = values(words)
    for name in found:
        if name not in ("record", *PLACES, *MACHINE):
            raise MadError(f"{name}= cannot be changed: a record says all of its API{near(name, OURS)}")
    # The folders may be written as a shell takes them, or in the quotes that mad-run needs around odd characters.
    places = {name: re.sub(r"""^(['"])(.*)\1$""", r"\2", found[name]) for name in PLACES if found.get(name)}
    wanted, outputs = str(found["record"]), Path(configs.home("outputs", places.get("outputs", "outputs")))
    if "outputs" in places:
        check_there("outputs", outputs)
    paths = sorted(outputs.glob(f"runs/*/*/*/{wanted}*/record.json")) if wanted.isalnum() else []
    if len(paths) != 1:
        which = "no record" if not paths else f"{len(paths)} records"
        raise MadError(f"{which} in {outputs} with a fingerprint that begins with {wanted}: see its records.csv")
    record = read_record(paths[0])
    overrides = shlex.split(str(record["overrides"] or "")) if record else []
    if not record or not overrides:
        raise MadError(f"{paths[0]} does not say how it was made: give victim= and defense=")
    machine = [word for word in words if word.partition("=")[0] in MACHINE]
    escaped = {name: folder.replace('"', '\\"') for name, folder in places.items()}
    machine += [f'{name}="{folder}"' for name, folder in escaped.items()]
    return composed([*overrides, *machine], place, record["fingerprint"])


def composed(words: list[str], place: Path | None, fingerprint: str | None = None) -> Deployment:
    """Return the deployment of the cell that words describe; its victim is loaded, or trained and kept.

    Raises:
        MadError: if the cell has not the ``fingerprint``.
    """
    with beside(("deployment", "record", "check", *OURS)):
        config = configs.composed(words, place)
    from mad.cli.compose import cell_of
    from mad.deployment import deploy
    from mad.device import choose, use_threads
    from mad.storage.store import Store

    use_threads(config.threads)
    cell, device = cell_of(config, words, deployed=fingerprint is None), choose(config.device)
    if fingerprint is not None and fingerprint != cell.fingerprint:
        raise MadError(
            f"record {fingerprint} cannot be made again: its overrides now make {cell.fingerprint}. Its plug-ins, data "
            "or the package have changed; run mad-run again"
        )
    return deploy(cell.victim, cell.defense, seed=cell.seed, store=Store(configs.outputs_of(config)), device=device)


def values(words: list[str]) -> dict[str, Any]:
    """Return the keys and values of words such as ``port=8080``.

    Raises:
        MadError: if a word is none, or has no value that YAML can read.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise MadError(f"{word!r} is no setting: it must be key=value, like port=8080")
        if name in found:
            raise MadError(f"{name}= is given twice: say it once")
        if name in TEXTS:
            found[name] = None if text == "null" else text
            continue
        try:
            found[name] = OmegaConf.from_dotlist([word])[name]
        except Exception as error:  # YAML's own
            raise MadError(f"{word!r} cannot be read: it must be key=value, like port=8080") from error
    return found

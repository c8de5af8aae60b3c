"""Write the tables of docs/records.md: the columns of every record, and those of the plug-ins that the package ships.

    python scripts/records_table.py

Its prose stays as it is.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from hydra.utils import get_class
from omegaconf import OmegaConf

from mad import gradient_probe
from mad.cli.command import Parser, command
from mad.schema import SECTIONS, Column, table

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "records.md"
START, END = "<!-- columns: written by scripts/records_table.py -->\n", "<!-- end of the columns -->\n"
PARTS = ("defense", "attack", "recovery")


def of_plugins() -> list[Column]:
    """Return the columns that shipped plug-ins add, each with the choices that write it, and those of the probe."""
    columns: dict[str, Column] = {}
    writers: dict[str, list[str]] = {}
    for part in PARTS:
        for file in sorted((ROOT / "conf" / part).glob("*.yaml")):
            choice = OmegaConf.load(file)
            if "_target_" not in choice:  # it sets keys of another
                choice = OmegaConf.load(file.with_name(f"{choice.defaults[0]}.yaml"))
            schema = getattr(get_class(choice._target_), "schema", ())
            for column in schema if isinstance(schema, tuple) else ():  # a chain's are those of its parts
                columns[column.name] = column
                choices = writers.setdefault(column.name, [])
                choices.append(file.stem if choices else f"{part}={file.stem}")
    found = [replace(column, writer=",".join(writers[name])) for name, column in columns.items()]
    return [*found, *gradient_probe.SCHEMA]


def filled(document: str) -> str:
    """Return the document with its tables made anew between the two marks."""
    sections = {**SECTIONS, "Of some attacks and defenses": of_plugins()}
    before, _, rest = document.partition(START)
    written = "\n".join(f"## {name}\n\n{table(columns)}\n" for name, columns in sections.items())
    return f"{before}{START}\n{written}\n{END}{rest.partition(END)[2]}"


@command
def main() -> None:
    """Rewrite the document's tables."""
    Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()

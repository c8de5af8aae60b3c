"""What the methods of some records are, and whose: the first line of each plug-in's module, which names its paper."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pandas as pd

KINDS = ("defense", "attack", "recovery")
PLAIN = {"defense": "The victim's own answers.", "recovery": "The answers as they come."}  # what none stands for
ELSEWHERE = "a plug-in that this package does not bring"
TARGET = re.compile(r"^_target_: mad\.(\w+)\.(\w+)\.\w+$", re.MULTILINE)
BASE = re.compile(r"^  - (\w+)$", re.MULTILINE)  # the YAML that another one changes


def used(records: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return the kind, the name and the description of each defense, attack and recovery of some records."""
    found = []
    for kind in KINDS:
        for name in sorted(map(str, records[kind].dropna().unique())):
            plain = PLAIN.get(kind, "") if name == "none" else ""
            found.append((kind, name, plain or described(kind).get(name, ELSEWHERE)))
    return found


@functools.cache
def described(kind: str) -> dict[str, str]:
    """Return the first line of the module of each plug-in of a kind, by the name of its YAML; imports nothing."""
    package = Path(__file__).parents[1]
    folder = package / "conf" if (package / "conf").is_dir() else package.parent / "conf"
    texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted((folder / kind).glob("*.yaml"))}
    found = {}
    for name, text in texts.items():
        base = BASE.search(text)
        target = TARGET.search(text) or TARGET.search(texts.get(base[1], "") if base else "")
        if target:
            module = package / target[1] / f"{target[2]}.py"
            doc = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
            found[name] = doc.partition("\n")[0]
    return found

"""What the methods of some records are, and whose: the first line of each plug-in's module, which names its paper."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pandas as pd

KINDS = {"defense": "defenses", "attack": "attacks", "recovery": "recoveries"}
PLAIN = {"defense": "The victim's own answers.", "recovery": "The answers as they come."}  # what none stands for
ELSEWHERE = "a plug-in that this package does not bring"


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
    """Return the first line of the module of each plug-in of a kind, by the plug-in's name; imports nothing."""
    found = {}
    for file in sorted((Path(__file__).parents[1] / KINDS[kind]).glob("*.py")):
        module = ast.parse(file.read_text(encoding="utf-8"))
        line = (ast.get_docstring(module) or "").partition("\n")[0]
        found |= dict.fromkeys(names(module), line)
    return found


def names(module: ast.Module) -> list[str]:
    """Return what the classes of a module set ``name`` to."""
    found = []
    for each in (line for part in module.body if isinstance(part, ast.ClassDef) for line in part.body):
        targets = each.targets if isinstance(each, ast.Assign) else [each.target] if isinstance(each, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == "name" for target in targets):
            value = getattr(each, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found.append(value.value)
    return found

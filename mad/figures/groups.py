"""What the records of one comparison group have in common, in words: for titles, tables and file names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from mad.storage.files import LONGEST

# What tells thefts apart, in the order of the pipeline, and how a value is said.
SAID = {
    "victim": "victim {}",
    "architecture": "victim's architecture {}",
    "victim_epochs": "victim's epochs {:g}",
    "pool": "pool {}",
    "attack": "attack {}",
    "attack_settings": "{}",
    "budget": "{:,.0f} queries",
    "recovery": "recovery {}",
    "knockoff_architecture": "knockoff {}",
    "knockoff_optimizer": "{}",
    "knockoff_learning_rate": "rate {:g}",
    "knockoff_epochs": "{:g} epochs",
    "knockoff_min_steps": "at least {:g} steps",
    "knockoff_schedule": "{}",
}
KNOCKOFF = [name for name in SAID if name.startswith("knockoff")]
# In a file's name numbers need a unit, and what says nothing is left out.
NAMED = {
    "victim_epochs": "epochs{:g}",
    "budget": "{:.0f}",
    "knockoff_learning_rate": "rate{:g}",
    "knockoff_epochs": "epochs{:g}",
    "knockoff_min_steps": "steps{:g}",
}
VALUES = ["victim_accuracy", "defended_accuracy", "stolen_accuracy", "l1_mean"]
MARK = " !"
MEANING = "!: a stolen model learned nothing, and gives one answer to everything: no measure of the defense"


def value(row: pd.Series, name: str) -> object:
    """Return what a record has in a column; None where it has nothing: older records lack some columns."""
    found = row.get(name)
    return None if found is None or pd.isna(found) or found == "" else found


def said(row: pd.Series, names: list[str]) -> str:
    """Say what a record has in some of the columns of ``SAID``."""
    known = {name: value(row, name) for name in names}
    return ", ".join(SAID[name].format(found) for name, found in known.items() if found is not None)


def differing(rows: pd.DataFrame) -> list[str]:
    """Return the columns of ``SAID`` in which the comparison groups of records differ."""
    firsts = [row for _, row in rows.drop_duplicates("comparison_group").iterrows()]
    return [name for name in SAID if len({value(row, name) for row in firsts}) > 1]


def whole(row: pd.Series) -> str:
    """Say what a comparison group is of: the victim, attack, budget, pool and training."""
    settings, recovery, epochs = (value(row, name) for name in ("attack_settings", "recovery", "victim_epochs"))
    parts = (
        f"{row.victim} stolen by {row.attack}{f' ({settings})' if settings else ''} "
        f"with {row.budget:,} queries from {row['pool']}{f', recovery {recovery}' if recovery != 'none' else ''}",
        f"victim {row.architecture}{f', {epochs:g} epochs' if epochs else ''}",
        said(row, KNOCKOFF),
    )
    return "; ".join(filter(None, parts))


def counted(seeds: Sequence[int]) -> str:
    """Say over how many seeds numbers are, from the least to the most."""
    least, most = min(seeds), max(seeds)
    return f"{most} seed{'' if most == 1 else 's'}" if least == most else f"{least} to {most} seeds"


def file_name(row: pd.Series, kind: str = "tradeoff") -> str:
    """Return the name, without its ending, of a comparison group's file: readable, unique, at most ``LONGEST`` bytes.

    It holds all by which groups may differ in the columns of ``SAID``; the group's digits, which end it, tell
    all others apart. Of too many long words each is cut.
    """
    known = {name: value(row, name) for name in SAID}
    if known["recovery"] == "none":
        del known["recovery"]
    if known["knockoff_architecture"] == known["architecture"]:
        del known["knockoff_architecture"]
    texts = [NAMED.get(name, "{}").format(found) for name, found in known.items() if found is not None]
    words = [re.sub(r"[^\w.+-]+", "-", text) for text in texts]  # one that leads elsewhere leads nowhere
    for longest in range(max(map(len, words)), 0, -1):
        name = "-".join([kind, *(each[:longest] for each in words), str(row.comparison_group)[:6]])
        if len(name.encode()) <= LONGEST:
            break
    return name


def spoken(values: pd.Series, mark: str = "") -> str:
    """Return the mean of numbers, and their deviation where there are several, with one decimal."""
    deviation = f" ± {values.std():.1f}" if len(values) > 1 else ""
    return "" if values.empty else f"{values.mean():.1f}{deviation}{mark}"


def mark(rows: pd.DataFrame) -> str:
    """Return what marks a stolen model's numbers where one learned nothing, and nothing where all learned."""
    return "" if learned(rows).all() else MARK


def points(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a defense's records by strength, from the least to the greatest; accuracies in percent.

    Indexed by the strength, NaN where there is none to set; with columns (value, "mean" | "std" | "min" | "max") over
    the seeds, ("seed", "nunique"), and ("learned", "min"): 1 if all stolen models learned anything.
    """
    percent = rows[VALUES] * [1 if value == "l1_mean" else 100 for value in VALUES]
    by = percent.groupby(rows.strength, dropna=False)
    parts = [by.agg(["mean", "std", "min", "max"])]
    for name, column, how in (("seed", rows.seed, "nunique"), ("learned", learned(rows).astype(float), "min")):
        parts.append(column.to_frame(name).groupby(rows.strength, dropna=False).agg([how]))
    return pd.concat(parts, axis=1)


def learned(rows: pd.DataFrame) -> pd.Series:
    """Return for each record whether its stolen model learned anything; older records do not say, and count as such."""
    if "learned" not in rows:
        return pd.Series(True, index=rows.index)
    return rows.learned.ne(False)

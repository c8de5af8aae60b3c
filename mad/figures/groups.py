"""Descriptions of comparison groups, for titles, tables and file names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from mad.storage import settled
from mad.storage.files import LONGEST

# The columns that tell thefts apart, in the order of the pipeline, and the text of a value.
SAID = {
    "victim": "victim {}",
    "architecture": "victim's architecture {}",
    "victim_epochs": "victim's epochs {:g}",
    "victim_validation": "victim's validation {:g}",
    "victim_seed": "victim's seed {:.0f}",
    "pool": "pool {}",
    "attack": "attack {}",
    "attack_settings": "{}",
    "budget": "{:,.0f} queries",
    "recovery": "recovery {}",
    "recovery_settings": "{}",
    "knockoff_architecture": "knockoff {}",
    "knockoff_optimizer": "{}",
    "knockoff_learning_rate": "rate {:g}",
    "knockoff_epochs": "{:g} epochs",
    "knockoff_min_steps": "at least {:g} steps",
    "knockoff_schedule": "{} rate",
    "knockoff_settings": "{}",
}
KNOCKOFF = [name for name in SAID if name.startswith("knockoff")]
# In a file name, numbers need a unit, and default values are left out.
NAMED = {
    "victim_epochs": "epochs{:g}",
    "victim_validation": "validation{:g}",
    "budget": "{:.0f}",
    "knockoff_learning_rate": "rate{:g}",
    "knockoff_epochs": "epochs{:g}",
    "knockoff_min_steps": "steps{:g}",
}
VALUES = ["victim_accuracy", "defended_accuracy", "stolen_accuracy", "l1_mean"]
MARK = " !"
MEANING = "!: a stolen model learned nothing, and gives one answer to everything: no measure of the defense"


def value(row: pd.Series, name: str) -> object:
    """Return a record's value in a column; None if it is empty or missing, as in older records."""
    found = row.get(name)
    return None if found is None or pd.isna(found) or found == "" else found


def said(row: pd.Series, names: list[str]) -> str:
    """Return a text of a record's values in some of the columns of ``SAID``."""
    known = {name: value(row, name) for name in names}
    return ", ".join(SAID[name].format(found) for name, found in known.items() if found is not None)


def beyond(row: pd.Series, usual: pd.DataFrame, name: str = "knockoff_settings") -> str:
    """Return the settings of a record's knockoff that most of the usual ones lack, and, after "no", those it lacks.

    The usual ones may have some, too: those of CIFAR-10 crop and flip their images.
    """
    most = list(usual[name].fillna("").mode()) if name in usual else []
    plain, own = (str(text or "").split() for text in (most[0] if most else "", value(row, name)))
    kinds = {word.partition("=")[0] for word in own}
    lacking = [f"no {word}" for word in plain if word.partition("=")[0] not in kinds]
    return " ".join([*(word for word in own if word not in plain), *lacking])


def figure_groups(rows: pd.DataFrame) -> pd.Series:
    """Return for each record the name of the group of records that one figure shows.

    This is its comparison group; where the victim's seed is not the cell's, also the victim's seed.
    """
    groups = rows.comparison_group.astype(str)
    if "victim_seed" not in rows:
        return groups
    seeds = rows.victim_seed.map("-{:.0f}".format, na_action="ignore")
    return groups + seeds.astype(object).where(rows.victim_seed.notna(), "")


def differing(rows: pd.DataFrame) -> list[str]:
    """Return the columns of ``SAID`` in which the groups of records (``figure_groups``) differ."""
    firsts = [row for _, row in rows[~figure_groups(rows).duplicated()].iterrows()]
    return [name for name in SAID if len({value(row, name) for row in firsts}) > 1]


def whole(row: pd.Series) -> str:
    """Return a text that describes a comparison group: victim, attack, budget, pool and training."""
    settings, recovery, how = (value(row, name) for name in ("attack_settings", "recovery", "recovery_settings"))
    epochs, held, seed = (value(row, name) for name in ("victim_epochs", "victim_validation", "victim_seed"))
    recovered = f", recovery {recovery}{f' ({how})' if how else ''}" if recovery != "none" else ""
    parts = (
        f"{row.victim} stolen by {row.attack}{f' ({settings})' if settings else ''} "
        f"with {row.budget:,} queries from {row['pool']}{recovered}",
        f"victim {row.architecture}{f', {epochs:g} epochs' if epochs else ''}"
        f"{f', {100 * row.victim_validation:g}% held out' if held else ''}"
        f"{'' if seed is None else f', seed {seed:.0f}'}",
        said(row, KNOCKOFF),
    )
    return "; ".join(filter(None, parts))


def counted(seeds: Sequence[int]) -> str:
    """Return a text of the number of seeds, or of its range."""
    least, most = min(seeds), max(seeds)
    return f"{most} seed{'' if most == 1 else 's'}" if least == most else f"{least} to {most} seeds"


def file_name(row: pd.Series, kind: str = "tradeoff") -> str:
    """Return the file name of a comparison group, without extension: readable, unique, at most ``LONGEST`` bytes.

    It holds the group's values in the columns of ``SAID``, and ends in digits of its hash and the seed of a victim that
    has its own, which make it unique. If the name is too long, each word is cut.
    """
    known = {name: value(row, name) for name in SAID}
    seed = known.pop("victim_seed")
    end = f"{str(row.comparison_group)[:6]}{'' if seed is None else f'-{seed:.0f}'}"
    if known["recovery"] == "none":
        del known["recovery"]
    if known["knockoff_architecture"] == known["architecture"]:
        del known["knockoff_architecture"]
    texts = [NAMED.get(name, "{}").format(found) for name, found in known.items() if found is not None]
    words = [re.sub(r"[^\w.+-]+", "-", text) for text in texts]  # also removes slashes
    for longest in range(max(map(len, words)), 0, -1):
        name = "-".join([kind, *(each[:longest] for each in words), end])
        if len(name.encode()) <= LONGEST:
            break
    return name


def spoken(values: pd.Series, mark: str = "") -> str:
    """Return the mean of numbers, and their standard deviation if there are several, with one decimal."""
    deviation = f" ± {values.std():.1f}" if len(values) > 1 else ""
    return "" if values.empty else f"{values.mean():.1f}{deviation}{mark}"


def mark(rows: pd.DataFrame) -> str:
    """Return the mark of a number if a stolen model of it learned nothing; empty if all learned."""
    return "" if learned(rows).all() else MARK


def points(rows: pd.DataFrame) -> pd.DataFrame:
    """Return statistics over the seeds for each strength of a defense, by rising strength; accuracies in percent.

    The index is the strength, NaN for a defense without one. The columns are (value, "mean" | "std" | "min" | "max"),
    ("seed", "nunique"), and ("learned", "min"), which is 1 if all stolen models learned anything.
    """
    percent = rows[VALUES] * [1 if value == "l1_mean" else 100 for value in VALUES]
    by = percent.groupby(rows.strength, dropna=False)
    parts = [by.agg(["mean", "std", "min", "max"])]
    for name, column, how in (("seed", rows.seed, "nunique"), ("learned", learned(rows).astype(float), "min")):
        parts.append(column.to_frame(name).groupby(rows.strength, dropna=False).agg([how]))
    return pd.concat(parts, axis=1)


def learned(rows: pd.DataFrame) -> pd.Series:
    """Return for each record whether its stolen model learned anything; True for older records without the column."""
    if "learned" not in rows:
        return pd.Series(True, index=rows.index)
    return rows.learned.ne(False)


def csv(table: pd.DataFrame) -> str:
    """Return a table as CSV, numbers with four decimals; strengths stay whole, since they tell its rows apart."""
    strengths = table.strength.map(lambda each: "" if pd.isna(each) else f"{each:.15g}")
    return settled.csv_of(table.assign(strength=strengths), float_format="%.4f")

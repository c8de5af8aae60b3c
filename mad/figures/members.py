"""What the members of a panel are called: by what tells each from the plainest one of its theft."""

from __future__ import annotations

import re

import pandas as pd

from mad.figures.groups import KNOCKOFF, beyond, said, value
from mad.storage import settled

THEFT = [*settled.THEFT, "theft_group", "victim_seed", "budget"]  # what the rows of one board share
DEFENSE = ["defense", "defense_settings", "strength_parameter", "strength"]
NAIVE = "naive"
OF_KNOCKOFF = re.compile(r"(?:^|[\s'])[+~]*knockoff[./]")  # an override of a setting of the knockoff


def named(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records with the name of their ``member``, and without empty cells in the columns of thefts.

    Older records are given the ``theft_group`` of the others that they belong to (``mad.storage.settled.thefts``).
    """
    rows = settled.thefts(settled.printable(records))
    empty = {name: "" for name in (*THEFT, *DEFENSE, "recovery_knows", "attack_settings") if name != "strength"}
    rows = rows.assign(member=members(rows), **{name: "" for name in empty if name not in rows})
    texts = rows[[*empty]].astype(object)
    rows = rows.assign(**texts.where(texts.notna(), ""))
    # Older records do not say what their member knows; what a newer one of it says counts for all.
    return rows.assign(recovery_knows=rows.groupby("member").recovery_knows.transform("max"))


def members(records: pd.DataFrame) -> pd.Series:
    """Return the name of each record's member: what tells it from the plainest one of its theft.

    Members of one theft whose records do not tell them apart are named by their comparison groups, too, but for the one
    with the most records.
    """
    usual = records[(records.attack == "knockoff") & (records.recovery == "none")]
    names: dict[str, str] = {}
    taken = set()
    apart = [name for name in ("victim", "pool", "budget", "theft_group") if name in records]
    groups = [(str(group), own) for group, own in records.groupby("comparison_group")]
    for group, own in sorted(groups, key=lambda each: -len(each[1])):
        row = own.iloc[0].copy()
        plain = untouched(usual[(usual[apart] == row[apart]).all(axis=1)])
        row["knockoff_settings"] = beyond(row, plain)
        parts = [row.attack, row.get("attack_settings"), row.recovery, row.get("recovery_settings")]
        words = [str(each) for each in parts if each and not pd.isna(each) and each not in ("knockoff", "none")]
        trained = said(row, [name for name in KNOCKOFF if name in plain and differs(row, plain[name].dropna(), name)])
        name = " ".join([*words, *filter(None, [trained])]) or NAIVE
        theft = tuple(str(value(row, each)) for each in THEFT)
        names[group] = f"{name} [{group[:8]}]" if (theft, name) in taken else name
        taken.add((theft, name))
    return records.comparison_group.map(names)


def untouched(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the records whose overrides leave the knockoff as it is by default; all, if none says so."""
    if "overrides" not in rows:
        return rows
    left = rows[[isinstance(words, str) and not OF_KNOCKOFF.search(words) for words in rows.overrides]]
    return left if len(left) else rows


def differs(row: pd.Series, usual: pd.Series, name: str) -> bool:
    """Return whether a record's value in a column is another than most of the usual ones; not if either is missing."""
    found = value(row, name)
    if name == "knockoff_settings":
        return found is not None  # empty is usual
    return found is not None and len(usual) > 0 and found != usual.mode()[0]

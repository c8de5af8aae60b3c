"""Which records of a data frame belong together, where the texts in their columns do not tell.

``mad.storage.records.frame`` settles the defenses' and the victims' columns. ``thefts`` settles ``theft_group``, for
figures only: what it fills in is likely, and no part of a record.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from mad.progress import err

THEFT = ["victim", "architecture", "victim_epochs", "victim_validation", "pool"]  # what names a victim and a pool
TEXTS = [  # columns of keys; an older record may lack them
    *("attack_settings", "defense_settings", "recovery_settings", "recovery_knows", "knockoff_architecture"),
    *("knockoff_optimizer", "knockoff_schedule", "knockoff_settings", "defense_group", "theft_group"),
]
POINT = ["comparison_group", "victim_seed", "defense", "defense_settings", "strength_parameter", "strength", "seed"]
DIGITS = 8  # of a group's hash, where a text needs them to be unique
SAID: set[str] = set()  # fingerprints that this process has warned of


def settle(table: pd.DataFrame) -> pd.DataFrame:
    """Return records with the texts, defenses and victims by which figures group them."""
    return victims(defenses(texts(table)))


def printable(table: pd.DataFrame) -> pd.DataFrame:
    """Return records whose texts are UTF-8, as in ``records.csv``: a path may hold bytes that no figure can draw."""
    return table.assign(**{str(name): encodable(table[name]) for name in table if table[name].dtype == object})


def encodable(column: pd.Series) -> pd.Series:
    """Return a column whose texts are UTF-8, which sorting needs, too."""
    return column.map(lambda each: each.encode(errors="backslashreplace").decode() if isinstance(each, str) else each)


def csv_of(table: pd.DataFrame, **how: Any) -> str:
    """Return a table as CSV that is read again as it was; ``how`` is what ``to_csv`` takes."""
    text = table.to_csv(index=False, **how)
    # Readers take a carriage return for the end of a line, and to_csv does not quote it by default.
    return table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, **how) if "\r" in text else text


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """Return records with no empty cell in the texts of keys, which ``groupby`` leaves out.

    They have the columns defense_settings and strength; a table of defenses without a strength may lack the latter.
    """
    absent: dict[str, Any] = {"defense_settings": "", "strength": math.nan}
    whole = table.assign(**{name: value for name, value in absent.items() if name not in table})
    empty = {name: whole[name].astype(object).where(whole[name].notna(), "") for name in TEXTS if name in whole}
    return whole.assign(**{name: filled for name, filled in empty.items() if whole[name].isna().any()})


def defenses(table: pd.DataFrame) -> pd.DataFrame:
    """Return records in which ``defense_settings`` tells the defenses of a theft apart as ``defense_group`` does.

    The records of one ``defense_group`` get the text that most of them have. Where two groups have one text, each text
    ends in the first digits of its group, in brackets. Records without a ``defense_group`` keep their texts.
    """
    if "defense_group" not in table or not (table.defense_group != "").any():
        return table
    digits = " [" + table.defense_group.str[:DIGITS] + "]"
    plain = [text.removesuffix(end.strip()).rstrip() for text, end in zip(table.defense_settings, digits, strict=True)]
    known = table.assign(defense_settings=plain)[table.defense_group != ""]
    settled = table.defense_settings.astype(object).copy()
    for _, rows in alike(known, ["theft_group", "defense", "strength_parameter"]):
        usual = rows.groupby("defense_group").defense_settings.agg(lambda each: each.mode().iloc[0])
        ends = usual.index.to_series().str[:DIGITS].map(" [{}]".format).where(usual.duplicated(keep=False), "")
        settled[rows.index] = rows.defense_group.map((usual + ends).str.strip())
    return table.assign(defense_settings=settled)


def victims(table: pd.DataFrame) -> pd.DataFrame:
    """Return records in which ``victim_seed`` tells the victims of one comparison group and seed apart.

    It is empty where the victim's seed is the cell's. But if all such records of a theft have one seed, and others of
    the theft have a victim with that seed, then these are one victim, as in ``seed=0,1,2 victim.seed=0``. An older
    record has the victim of the newer ones of its comparison group and seed, if they have one.
    """
    if "victim_seed" not in table:
        return table
    given = [None if pd.isna(each) else int(each) for each in table.victim_seed]  # floats, where a column has gaps
    seeds = pd.Series(given, index=table.index, dtype=object)
    seeds = seeds.where(seeds != table.seed, None)
    if "theft_group" in table:  # an older record does not say which victim it is of
        older, newer = table.index[table.theft_group == ""], table[table.theft_group != ""]
        known = {key: set(seeds[rows.index]) for key, rows in newer.groupby(["comparison_group", "seed"])}
        for row in older:
            found = known.get((table.comparison_group[row], table.seed[row]), set())
            seeds[row] = next(iter(found)) if len(found) == 1 else seeds[row]
    for _, rows in alike(table, ["theft_group"]):
        fixed, own = seeds[rows.index].dropna(), rows.seed[seeds[rows.index].isna()]
        if own.nunique() == 1 and own.iloc[0] in set(fixed):
            seeds[own.index] = own.iloc[0]
    return table.assign(victim_seed=seeds)


def thefts(table: pd.DataFrame) -> pd.DataFrame:
    """Return records in which those without a ``theft_group`` have that of the others that they belong to.

    These are the records of the same names, if they have one group; if they have several, those that share a comparison
    group with one that lacks it, if these have one. Else it stays empty, and such records are a theft of their own.
    """
    given = table.get("theft_group", pd.Series("", index=table.index))
    settled = given.astype(object).where(given.notna(), "")
    for _, rows in alike(table, []):
        of = settled[rows.index]
        lacking, known = rows[of == ""], rows[of != ""]
        found = set(of[known.index])
        if len(found) > 1:
            found = set(of[known.index[known.comparison_group.isin(lacking.comparison_group)]])
        if len(found) == 1:
            settled[lacking.index] = found.pop()
    return table.assign(theft_group=settled)


def alike(table: pd.DataFrame, further: list[str]) -> Iterator[tuple[object, pd.DataFrame]]:
    """Return an iterator over the records with the same names of victim and pool, and the same ``further`` values."""
    keys = [name for name in (*THEFT, *further) if name in table]
    whole = table[keys].astype(object).where(table[keys].notna(), "")
    return iter(table.groupby([whole[name] for name in keys]))


def warn(table: pd.DataFrame) -> None:
    """Say once on stderr if records have all columns of a point and the seed in common, and differ all the same."""
    keys = [name for name in POINT if name in table]
    one = table.drop_duplicates("fingerprint")
    new = one[one.duplicated(keys, keep=False) & ~one.fingerprint.isin(SAID)]
    if new.empty:
        return
    SAID.update(new.fingerprint)
    _, same = next(iter(new.groupby(keys, dropna=False, sort=False)))
    at, more = same.iloc[0], f", and {len(new) - len(same)} more such records" if len(new) > len(same) else ""
    said = f"records {' and '.join(same.fingerprint)} of {at.defense}, seed {at.seed}{more}: no column tells them apart"
    err.print(f"{said}, and figures show their mean; remove the folders of those that do not count", soft_wrap=True)

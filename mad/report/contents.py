"""What a report says: for each theft its board, its curves, what its adversaries reach, and the records of each number.

All numbers are those of ``mad.figures``; nothing is computed from single runs here but sums of seconds.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mad.figures import board, tradeoff
from mad.figures.board_views import label, mark
from mad.figures.groups import learned

STRONGEST = "the strongest adversary"
AFFORDABLE = 1.0  # points of the API's accuracy that the defense of the headline may cost
TESTS = (board.UNDONE, board.NOTHING)  # defenses that test the panel, and that nobody would use
ABSOLUTE = r"(?:\bfile://|(?<![\w./…<]))/"
FOLDERS = re.compile(ABSOLUTE + r"(?:(?:[^\s'\"(\[{,=/]|[(\[{,=](?!/))+/)*(?=[^\s/])")  # of an absolute path
SPACED = re.compile(r"(['\"])([^'\"]*?)" + ABSOLUTE + r"(?!/)[^'\"]*\s[^'\"]*/(?=[^'\"/]+\1)")  # of one in quotes
SHOWN = 3  # commands of one number


@dataclass(frozen=True)
class Theft:
    """One victim, pool and query budget.

    Args:
        title: what it is.
        table: its board, one row for each defense and strength (``mad.figures.board.board``).
        points: what is drawn, one row for each curve and strength (``worst_points``, ``member_points``).
        members: one row for each defense, strength and adversary (``mad.figures.board.each_member``).
        seconds: one row for each defense and strength, means over its runs.
        chance: the accuracy of guessing, percent.
    """

    title: str
    table: pd.DataFrame
    points: pd.DataFrame
    members: pd.DataFrame
    seconds: pd.DataFrame
    chance: float


def read(records: pd.DataFrame) -> list[Theft]:
    """Return the thefts of some records. A theft whose only adversary was given the clean answers has no board."""
    rows, every = board.named(records), board.each_member(records)
    boards = board.boards(records, least=1)
    found = []
    for title, theft in board.thefts(rows, least=1).items():
        own = every[(every[board.THEFT] == theft[board.THEFT].iloc[0]).all(axis=1)]
        cells = {key(each.iloc[0]): each for _, each in theft.groupby([*board.DEFENSE, "member"], dropna=False)}
        table, parts = boards[title], [member_points(theft, cells)]
        if theft.member.nunique() > 1:
            parts.insert(0, worst_points(table, cells))
        found.append(
            Theft(
                title,
                table,
                pd.concat(parts, ignore_index=True),
                own.reset_index(drop=True),
                seconds(theft),
                100 * float(theft.chance.iloc[0]),
            )
        )
    return found


def key(row: Any, member: str | None = None) -> tuple[Hashable, ...]:
    """Return what tells the cells of a theft apart but for the seed: defense with settings, strength and member."""
    name = f"{row.defense} ({row.defense_settings})" if row.get("defense_settings") else str(row.defense)
    parameter = row.get("strength_parameter", row.get("parameter"))
    return name, *turned(parameter, row.strength), row.member if member is None else member


def turned(parameter: Any, strength: Any) -> tuple[str, float | None]:
    """Return a strength with its parameter; None for a defense without one."""
    return str(parameter or ""), None if pd.isna(strength) else float(strength)


def command(rows: pd.DataFrame) -> str:
    """Return the command that makes some records, which differ in their seeds; empty for cells built in Python.

    Records that were made by different command lines have as many commands, of which the first are returned.
    """
    seeds: dict[str, list[int]] = {}
    for _, row in rows.iterrows():
        text = row.get("overrides")
        if isinstance(text, str) and text:
            seeds.setdefault(unseeded(text), []).append(int(row.seed))
    lines = [
        " ".join(filter(None, ["mad-run", "-m" * (len(own) > 1), rest, f"seed={','.join(map(str, sorted(set(own))))}"]))
        for rest, own in seeds.items()
    ]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "; ".join([*lines[:SHOWN], *more])


def unseeded(overrides: str) -> str:
    """Return a command line without its seed."""
    try:
        return shlex.join([word for word in shlex.split(overrides) if not word.lstrip("+").startswith("seed=")])
    except ValueError:  # an open quote
        return overrides


def without_folders(text: str) -> str:
    """Return a text in which an absolute path has its last part only: a report tells nothing of the machine."""
    return FOLDERS.sub("…/", SPACED.sub(r"\1\2…/", text))


def worst_points(table: pd.DataFrame, cells: dict[tuple[Hashable, ...], pd.DataFrame]) -> pd.DataFrame:
    """Return the curves of the strongest adversary, from a board; each begins at the undefended point.

    Columns: ``adversary``, ``curve``, ``defense``, ``parameter``, ``strength``; ``api`` (percent) and ``l1``, means;
    ``stolen`` (percent) with ``low`` and ``high`` of its bar, empty for one seed; ``member``, ``seeds``, ``learned``,
    ``command`` and ``records``.
    """
    origin = table[table.defense == "none"]
    found = []
    for (name, parameter), rows in table[table.defense != "none"].groupby(["defense", "parameter"], sort=False):
        rows = rows.sort_values("strength")
        for _, at in pd.concat([origin, tradeoff.weak_to_strong(rows, rows.l1_mean)]).iterrows():
            own = cells[key(at, at.worst_member)]
            own = own[own.seed.isin(at.counted)]
            found.append(
                {
                    **{"adversary": STRONGEST, "curve": curve(table, str(name), str(parameter))},
                    **{"defense": at.defense, "parameter": at.parameter, "strength": at.strength},
                    **{"api": 100 * at.defended_accuracy, "l1": at.l1_mean},
                    **{"stolen": at.worst, "low": at.low, "high": at.high},
                    **{"member": at.worst_member, "seeds": at.seeds},
                    **said(own),
                }
            )
    return pd.DataFrame(found)


def curve(table: pd.DataFrame, name: str, parameter: str) -> str:
    """Return the name of a defense's curve, with its parameter if it was run with two."""
    return f"{name} by {parameter}" if table[table.defense == name].parameter.nunique() > 1 else name


def member_points(theft: pd.DataFrame, cells: dict[tuple[Hashable, ...], pd.DataFrame]) -> pd.DataFrame:
    """Return the curves of each adversary (``mad.figures.tradeoff.curves``), with the columns of ``worst_points``."""
    found = []
    names = theft.groupby("comparison_group").member.first()
    for group, rows in theft.groupby("comparison_group", sort=False):
        member = names[group]
        adversary = member if (names == member).sum() == 1 else f"{member}, group {str(group)[:6]}"
        undefended = rows[rows.defense == "none"]
        for name, points in tradeoff.curves(rows).items():
            text, parameter = name.removesuffix(f" by {points.index.name}"), str(points.index.name)
            for place, (strength, at) in enumerate(points.iterrows()):
                plain = place == 0 and len(undefended) > 0
                own = undefended if plain else cells[(text, *turned(parameter, strength), member)]
                own = own[own.comparison_group == group]
                stolen, deviation = at[board.STOLEN, "mean"], at[board.STOLEN, "std"]
                found.append(
                    {
                        **{"adversary": adversary, "curve": name, "defense": "none" if plain else text},
                        **{"parameter": parameter, "strength": strength},
                        **{"api": at["defended_accuracy", "mean"], "l1": at["l1_mean", "mean"]},
                        **{"stolen": stolen, "low": stolen - deviation, "high": stolen + deviation},
                        **{"member": member, "seeds": int(at["seed", "nunique"])},
                        **said(own),
                    }
                )
    return pd.DataFrame(found)


def said(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the columns that tell where a number comes from."""
    return {
        "learned": bool(learned(rows).all()),
        "command": command(rows),
        "records": " ".join(rows.fingerprint),
    }


def seconds(theft: pd.DataFrame) -> pd.DataFrame:
    """Return the mean seconds of a run of each defense and strength: its parts, and on which devices."""
    parts = ["seconds_queries", "seconds_knockoff", "seconds_victim"]
    lacking = {name: math.nan for name in parts if name not in theft}  # a published table has not all of them
    there = theft.assign(device=theft.get("device", pd.Series("", index=theft.index)), **lacking)
    by = there.groupby(board.DEFENSE, dropna=False, sort=False)
    found = by.agg(
        **{name: (name, "mean") for name in parts},
        device=("device", lambda each: ", ".join(sorted({str(one) for one in each.dropna()}))),
        runs=("seed", "size"),
    )
    return found.reset_index()


def headline(theft: Theft) -> list[str]:
    """Return the sentences that a reader in a hurry needs of a theft.

    A defense whose strongest adversary is a model that learned nothing is not compared: that is no measure of it.
    """
    table = theft.table
    found = []
    for _, none in table[table.defense == "none"].iterrows():
        found.append(
            f"Undefended, the stolen model reaches {none.worst:.1f} % ({none.worst_member}), "
            f"where the victim has {100 * none.victim_accuracy:.1f} %."
        )
    told = [at.defense not in ("none", *TESTS) and not mark(at, "worst") for _, at in table.iterrows()]
    real = table[told]
    cost = 100 * (real.victim_accuracy - real.defended_accuracy).clip(lower=0)
    able = real.assign(cost=cost)[cost <= AFFORDABLE + 1e-9]
    if len(able):
        most = able[able.members == able.members.max()]  # who met few adversaries has a weak strongest one
        best, count = most.sort_values("worst", kind="stable").iloc[0], most.defense.nunique()
        met = "" if len(most) == len(able) else f" and met {int(best.members)} adversaries, the most of these"
        found.append(
            f"Of {count} defense{'s' * (count != 1)} that cost the API at most {AFFORDABLE:g} point of accuracy{met}, "
            f"{label(best)} leaves its strongest adversary least: {best.worst:.1f} % ({best.worst_member}), "
            f"for {best.cost:.1f} points and a mean L1 of {best.l1_mean:.2f}."
        )
    elif len(real):
        found.append(f"Every defense here costs the API more than {AFFORDABLE:g} point of accuracy.")
    return found


def warnings(theft: Theft) -> list[str]:
    """Return what a reader must know before trusting a theft's numbers."""
    table, found = theft.table, []
    most = int(table.members.max())
    if most < board.PANEL:
        few = "One adversary" if most == 1 else f"At most {most} adversaries"
        found.append(f"{few}: runs beside each other, not a panel. Another adversary may take more.")
    if table.members.nunique() > 1:
        found.append("Not every defense faced the same number of adversaries: compare only rows with equal members.")
    alone = int((table.seeds == 1).sum())
    if alone:
        share = "Every row" if alone == len(table) else f"{alone} of {len(table)} rows"
        found.append(f"{share} of the board: one seed, an anecdote.")
    if not theft.points.learned.all():
        found.append("A crossed point: a stolen model learned nothing, which is no measure of the defense.")
    return found

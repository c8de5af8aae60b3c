"""The board: each defense by what its strongest adversary leaves.

A member of the panel is an adversary: an attack, a recovery and a way to train the knockoff. The worst member of a
defense is the one with the highest mean accuracy over the seeds that all members share (``means`` says which members).
Its number is that mean, not the highest of all runs, which luck would raise; its interval is of a bootstrap over seeds
that chooses the worst anew.
Members that are given what no thief has are shown beside the worst, and are never it.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from mad.figures.groups import learned
from mad.figures.members import DEFENSE, NAIVE, THEFT, named
from mad.storage import settled
from mad.storage.fingerprint import digest

CLEAN = "the victim's clean answers"  # knowledge that no thief has
OWN = "keep=seeds"  # the setting of attack=augmented with which a thief trains on its own images only
DRAWS, SURE = 1000, 0.95
STOLEN, AGREEMENT = "stolen_accuracy", "agreement"
COSTS = ("victim_accuracy", "defended_accuracy", "l1_mean", "l1_max", "nll", "ece", "auroc_pool", "selective_accuracy")
LEAST = 2  # members, for a board
PANEL = 8  # members of a theft that make a panel, not two runs beside each other
LABELS = "argmax"
UNDONE, NOTHING = "permuted", "random_answers"  # the defenses that test the panel
BACK, CHANCE = 0.95, 10.0  # what must come back of the first, and points above chance that the second may leave


def boards(records: pd.DataFrame, least: int = LEAST) -> dict[str, pd.DataFrame]:
    """Return the board of each theft (victim, pool, budget) that ``least`` members were run on, by its title."""
    rows = named(records)
    return {title: board(theft, honest(alike(rows, theft))) for title, theft in thefts(rows, least).items()}


def thefts(rows: pd.DataFrame, least: int = LEAST) -> dict[str, pd.DataFrame]:
    """Return the records of each theft that ``least`` members were run on, by its title; ``rows`` are ``named``.

    Where two thefts would have one title, each ends in the first digits of its ``theft_group``, or of a hash of what it
    is.
    """
    found = []
    keys: Any
    for keys, theft in rows.groupby(THEFT, dropna=False):
        if theft[~informed(theft)].member.nunique() >= least:
            victim, architecture, epochs, held, pool, group, seed, budget = keys
            epochs = f", {epochs:g} epochs" if epochs != "" else ""
            held = f", {100 * held:g}% held out" if held != "" else ""
            seed = f", seed {seed:.0f}" if seed != "" else ""
            title = f"{victim} ({architecture}{epochs}{held}{seed}) stolen with {budget:,} queries from {pool}"
            found.append((title, str(group or digest([str(key) for key in keys])), theft))
    titles = Counter(title for title, _, _ in found)
    return {
        f"{title} [{group[: settled.DIGITS]}]" if titles[title] > 1 else title: theft for title, group, theft in found
    }


def informed(rows: pd.DataFrame) -> pd.Series:
    """Return which records' adversary was given the victim's clean answers, as no thief is."""
    return rows.recovery_knows.str.contains(CLEAN, regex=False)


def alike(rows: pd.DataFrame, theft: pd.DataFrame) -> pd.DataFrame:
    """Return the records of a theft's victim and pool, with any budget."""
    return rows[(rows[THEFT[:-1]] == theft[THEFT[:-1]].iloc[0]).all(axis=1)]


def honest(rows: pd.DataFrame) -> pd.Series:
    """Return what the naive thief steals undefended, percent, by budget: never less with more queries."""
    naive = rows[(rows.defense == "none") & (rows.member == NAIVE)]
    return 100 * naive.groupby("budget")[STOLEN].mean().cummax()


def board(theft: pd.DataFrame, undefended: pd.Series) -> pd.DataFrame:
    """Return one row for each defense and strength of a theft, the one that leaves its worst member least first.

    Defenses that met fewer members than another did come last, since who met few adversaries has a weak worst one.

    Columns: ``defense`` with its settings, ``parameter``, ``strength``, ``members`` and the ``most`` that any defense
    met; ``seeds``; ``worst`` (percent), ``low`` and ``high`` of its 95 % interval, ``worst_member`` and what it
    ``knows``; ``agreement``, the highest mean agreement of any member, and the ``agreement_member``; ``naive``,
    ``labels`` and the best member that is given the clean answers (``informed``, ``informed_member``), empty where they
    were not run; ``unaided``, that of the best ``unaided_member`` of those that know nothing but the answers; ``own``,
    that of the best of those that train on their own images of the victim's kind and on nothing else (``own_member``);
    ``honest``, how many undefended answers make the naive thief as good as the worst member is, by interpolation
    between the budgets of ``undefended`` and empty with fewer than two; the API's costs, means over the seeds;
    ``chance``; ``seconds`` of a seed's thefts; ``by_member``, the mean of each member, informed ones too; ``counted``,
    the seeds of these numbers; and the members that are ``unlearned``: a stolen model of theirs learned nothing.
    """
    every = [cells for _, cells in theft.groupby(DEFENSE, dropna=False)]
    found = [row(cells) for cells in every if not informed(cells).all()]  # others have no thief yet
    for each in found:
        each["honest"] = equivalent(undefended, each["worst"])
    table = pd.DataFrame(found).sort_values("worst")
    table["most"] = table.members.max()
    return table.sort_values("members", key=lambda met: met < met.max(), kind="stable", ignore_index=True)


def row(cells: pd.DataFrame) -> dict[str, Any]:
    """Return the row of one defense at one strength."""
    given, aided = informed(cells), cells.recovery_knows != ""
    scores, agreed = (means(cells[~given], name) for name in (STOLEN, AGREEMENT))
    told = worst(scores)
    own = ~given & aided & (cells.attack == "augmented") & cells.attack_settings.map(lambda each: OWN in each.split())
    shared = cells.seed.isin(scores.index)  # of no record where the members share no seed: then all count
    shared |= not shared.any()
    bound, unaided, owned = (of_members(cells[some & shared]) for some in (given, ~aided, own))
    first = cells.iloc[0]
    counted = cells[shared].sort_values("member", key=lambda each: each != NAIVE, kind="stable")
    costs = [name for name in COSTS if name in cells]
    knows = cells.groupby("member").recovery_knows.first().to_dict()
    each = scores.mean().combine_first(100 * cells[~given].groupby("member")[STOLEN].mean())
    return {
        "defense": f"{first.defense} ({first.defense_settings})" if first.defense_settings else str(first.defense),
        "parameter": first.strength_parameter,
        "strength": first.strength,
        "members": len(each),
        "seeds": len(scores),
        **told,
        "knows": knows[told["worst_member"]],
        "agreement": agreed.mean().max(),
        "agreement_member": agreed.mean().idxmax(),
        "naive": each.get(NAIVE),
        "labels": each.get(LABELS),
        "informed": bound.max() if len(bound) else None,
        "informed_member": bound.idxmax() if len(bound) else "",
        **{name: counted.groupby("seed")[name].first().mean() for name in costs},  # the naive thief's pool, if it ran
        "chance": 100 * first.chance,
        "seconds": seconds(cells),
        "by_member": {name: float(share) for name, share in [*each.items(), *bound.items()]},
        "unaided": unaided.max() if len(unaided) else None,
        "unaided_member": unaided.idxmax() if len(unaided) else "",
        "own": owned.max() if len(owned) else None,
        "own_member": owned.idxmax() if len(owned) else "",
        "counted": sorted(cells.seed[shared].unique()),
        "unlearned": sorted(cells[~learned(cells)].member.unique()),
    }


def by_seed(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the means of a column in percent, seeds by members; as ``pivot_table``, which takes longer."""
    return 100 * cells.groupby(["seed", "member"])[column].mean().dropna().unstack()


def means(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column's values in percent, seeds by members, for the seeds that all members share.

    A member that was run with fewer seeds, all of which are below the lowest of the strongest one, does not count: it
    is not the strongest, and must not take the others' seeds away.
    """
    table = by_seed(cells, column)
    if table.empty:
        return table
    seeds = table.count()
    strongest = table.loc[:, seeds == seeds.max()].mean().idxmax()
    counted = table.loc[:, (seeds == seeds.max()) | (table.max() >= table[strongest].min())].dropna()
    return counted if len(counted) else table.mean().to_frame(math.nan).T  # the mean of each over its own seeds


def of_members(cells: pd.DataFrame) -> pd.Series:
    """Return the mean stolen accuracy of some members, percent, over the seeds of their row.

    A member that lacks some of the seeds counts only if it could be the strongest of them.
    """
    table = by_seed(cells, STOLEN)
    whole = table.dropna(axis=1)
    if whole.empty:
        return table.mean()
    least = whole[whole.mean().idxmax()].min()
    return table.loc[:, table.notna().all() | (table.max() >= least)].mean()


def seconds(cells: pd.DataFrame) -> float:
    """Return the seconds of a seed's thefts, a mean over the seeds with the most members; NaN unless all are known."""
    if not {"seconds_queries", "seconds_knockoff"} <= {*cells}:
        return math.nan
    each = cells.seconds_queries + cells.seconds_knockoff
    of = each.groupby(cells.seed)
    return float(of.sum()[of.size() == of.size().max()].mean()) if each.notna().all() else math.nan


def worst(scores: pd.DataFrame) -> dict[str, Any]:
    """Return the worst member of scores (seeds by members), its mean, and the 95 % interval of a bootstrap over seeds.

    Each draw of seeds chooses its own worst member. One seed has no interval.
    """
    mean = scores.mean()
    found: dict[str, Any] = {"worst": mean.max(), "low": None, "high": None, "worst_member": mean.idxmax()}
    if len(scores) > 1:
        draws = np.random.default_rng(0).integers(len(scores), size=(DRAWS, len(scores)))
        most = scores.to_numpy()[draws].mean(axis=1).max(axis=1)
        found["low"], found["high"] = np.quantile(most, [(1 - SURE) / 2, (1 + SURE) / 2])
    return found


def equivalent(undefended: pd.Series, stolen: float) -> float | None:
    """Return the budget at which the undefended theft steals as much; the least or largest budget beyond its ends.

    Args:
        undefended: accuracy in percent by budget, rising.
        stolen: accuracy in percent.
    """
    if len(undefended) < 2:
        return None
    rising = undefended[~undefended.duplicated()]  # the least of the budgets that steal as much
    budgets, most = np.log(rising.index.to_numpy(dtype=float)), math.log(undefended.index[-1])
    return float(np.exp(np.interp(stolen, rising.to_numpy(), budgets, right=most)))


def checks(table: pd.DataFrame) -> list[str]:
    """Return a line for each test that a panel passes or fails: a defense that is undone, and one that tells nothing.

    A panel must get back ``BACK`` of the undefended accuracy where the classes' names are exchanged, and members that
    know nothing else must stay within ``CHANCE`` points of chance where the answers are random.
    """
    found, by = [], table.drop_duplicates("defense").set_index("defense")
    if UNDONE in by.index and "none" in by.index:
        share = by.worst[UNDONE] / by.worst["none"]
        found.append(
            f"{UNDONE}: {by.worst[UNDONE]:.1f} % comes back of {by.worst['none']:.1f} % undefended, "
            f"at least {BACK:.0%} of it must: {'passed' if share >= BACK else 'FAILED'}"
        )
    if NOTHING in by.index and not pd.isna(by.unaided[NOTHING]):
        most, limit = by.unaided[NOTHING], by.chance[NOTHING] + CHANCE
        found.append(
            f"{NOTHING}: {most:.1f} % by members that know nothing else, "
            f"at most {limit:.0f} % may be: {'passed' if most <= limit else 'FAILED'}"
        )
    return found


def each_member(records: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each defense, strength and member of each theft, with the fingerprints of its records."""
    percent = {name: 100 * records[name] for name in (STOLEN, AGREEMENT)}
    rows = named(records).assign(**percent)
    by = rows.groupby([*THEFT, *DEFENSE, "member", "recovery_knows"], dropna=False)
    return by.agg(
        seeds=("seed", "nunique"),
        stolen=(STOLEN, "mean"),
        stolen_deviation=(STOLEN, "std"),
        agreement=(AGREEMENT, "mean"),
        records=("fingerprint", " ".join),
    ).reset_index()

"""Measures: how each number that the paper states is computed from our records.

A measure takes a theft. It returns one value per seed, the choice that was made (such as a strength) and the records;
or None if a record is missing. Accuracies and their differences are in percent. A choice, such as the strength that
costs less than a point of accuracy, is made by means over the seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mad import limits
from mad.figures.board import equivalent
from mad.figures.cells import Theft, curve, undefended, under
from mad.figures.groups import points
from mad.figures.moves import by_budget, moves
from mad.figures.online import BINS, LOSSES, angles, numbers, study
from mad.figures.plane import ATTACKS, PARAMETERS

STOLEN, DEFENDED, VICTIM = "stolen_accuracy", "defended_accuracy", "victim_accuracy"


@dataclass(frozen=True)
class Found:
    """The result of a measure.

    Args:
        values: one value per seed; the seeds are the index.
        rows: the records that the values come from.
        where: the choice that was made, such as a strength; empty if there was none.
    """

    values: pd.Series
    rows: pd.DataFrame
    where: str = ""


Measure = Callable[..., Found | None]


def percent(rows: pd.DataFrame, column: str = STOLEN) -> pd.Series:
    """Return a column of records in percent, indexed by seed."""
    return 100 * rows.groupby("seed")[column].mean()


def at_strength(rows: pd.DataFrame, strength: float) -> pd.DataFrame:
    """Return the records of one strength."""
    return rows[np.isclose(rows.strength.astype(float), strength)]


def turned(rows: pd.DataFrame, defense: str) -> pd.DataFrame:
    """Return the records of a defense that the paper's figures show."""
    return under(rows, defense, PARAMETERS.get(defense))


def difference(more: pd.DataFrame, less: pd.DataFrame, where: str = "") -> Found | None:
    """Return the difference in stolen accuracy between two sets of records, in points, seed by seed."""
    values = (percent(more) - percent(less)).dropna()
    return Found(values, pd.concat([more, less]), where) if len(values) else None


def of(rows: pd.DataFrame, values: pd.Series, where: str = "") -> Found | None:
    """Return the result of a measure, or None if there are no values."""
    return Found(values, rows, where) if len(values.dropna()) else None


def victim(theft: Theft) -> Found | None:
    """Return the undefended victim's accuracy."""
    rows = undefended(theft.plain)
    return of(rows, percent(rows, VICTIM))


def stolen(theft: Theft, attack: str, defense: str = "none", at: float | None = None) -> Found | None:
    """Return the stolen model's accuracy, without a defense or at a strength of a defense."""
    rows = theft.cells(attack)
    rows = undefended(rows) if at is None else at_strength(turned(rows, defense), at)
    return of(rows, percent(rows))


def cheapest(theft: Theft, attack: str, spend: float) -> tuple[pd.DataFrame, pd.DataFrame, str] | None:
    """Return MAD's records with the lowest stolen accuracy that cost less than ``spend`` points of the API's accuracy.

    Also return the undefended records, and the strength.
    """
    rows = theft.cells(attack)
    found = curve(rows, "mad")
    if found.empty or undefended(rows).empty:
        return None
    spent = found[VICTIM]["mean"] - found[DEFENDED]["mean"]
    allowed = found[limits.under(spent, spend) & (found.index > 0)]
    if allowed.empty:
        return None
    best = float(allowed[STOLEN]["mean"].idxmin())
    return at_strength(turned(rows, "mad"), best), undefended(rows), f"epsilon={best:g}"


def stolen_within(theft: Theft, attack: str, spend: float) -> Found | None:
    """Return the lowest stolen accuracy under MAD at a cost below ``spend`` points of the API's accuracy."""
    found = cheapest(theft, attack, spend)
    return of(found[0], percent(found[0]), found[2]) if found else None


def reduction(theft: Theft, spend: float, attacks: str = "", of: str = "most") -> Found | None:
    """Return by how many points MAD reduces stolen accuracy at a cost below ``spend``; of all attacks, max or min."""
    names = [attacks] if attacks else ATTACKS
    known = [(name, cheapest(theft, name, spend)) for name in names]
    if len(known) > 1 and any(found is None for _, found in known):
        return None  # the maximum over all attacks needs records of all attacks
    each = [difference(f[1], f[0], f"{name} {f[2]}" if len(known) > 1 else f[2]) for name, f in known if f]
    measured = [one for one in each if one]
    pick = max if of == "most" else min
    return pick(measured, key=lambda one: one.values.mean()) if measured else None


def error_ratio(theft: Theft, spend: float) -> Found | None:
    """Return the stolen model's error divided by the victim's, under MAD at a cost below ``spend``, in points.

    It is the maximum over all attacks; None if an attack has no records.
    """
    best = None
    for attack in ATTACKS:
        found = cheapest(theft, attack, spend)
        if found is None:
            return None
        ratio = (100 - percent(found[0])) / (100 - percent(found[0], VICTIM))
        if best is None or ratio.mean() > best.values.mean():
            best = Found(ratio, found[0], f"{attack} {found[2]}")
    return best


def l1_ratio(theft: Theft, other: str, at: float) -> Found | None:
    """Return MAD's mean L1 divided by that of another defense at equal stolen accuracy, by interpolation."""
    rows = theft.cells()
    ours, theirs = at_strength(turned(rows, "mad"), at), pd.concat([undefended(rows), turned(rows, other)])
    found = {}
    for seed, left in percent(ours).items():
        known = theirs[theirs.seed == seed].sort_values("l1_mean")
        accuracies, distances = 100 * known[STOLEN].to_numpy(), known.l1_mean.to_numpy()
        enough = np.flatnonzero(accuracies <= left)
        if len(enough) and enough[0]:
            either = slice(enough[0] - 1, enough[0] + 1)
            needed = np.interp(-left, -accuracies[either], distances[either])
            found[seed] = ours[ours.seed == seed].l1_mean.mean() / needed
    return of(pd.concat([ours, theirs]), pd.Series(found, dtype=float))


def strongest(theft: Theft, defense: str, recovery: str = "none") -> Found | None:
    """Return the largest reduction, over the strengths of a defense, of knockoff's stolen accuracy, in points."""
    rows = theft.cells(recovery=recovery)
    cells = turned(rows, defense)
    if cells.empty or undefended(rows).empty:
        return None
    best = float(points(cells)[STOLEN]["mean"].idxmin())
    return difference(undefended(rows), at_strength(cells, best), f"{cells.strength_parameter.iloc[0]}={best:g}")


def below(theft: Theft, defense: str, limit: float) -> tuple[pd.DataFrame, str] | None:
    """Return the records of the strength with the best API accuracy that keeps knockoff's accuracy below a limit."""
    cells = turned(theft.cells(), defense)
    found = points(cells)
    found = found[limits.under(found[STOLEN]["mean"], limit)]
    if found.empty:
        return None
    best = float(found[DEFENDED]["mean"].idxmax())
    return at_strength(cells, best), f"{cells.strength_parameter.iloc[0]}={best:g}"


def defended_below(theft: Theft, defense: str, limit: float) -> Found | None:
    """Return the API's accuracy at the strength of ``below``."""
    found = below(theft, defense, limit)
    return of(found[0], percent(found[0], DEFENDED), found[1]) if found else None


def spent_below(theft: Theft, defense: str, limit: float) -> Found | None:
    """Return the cost at the strength of ``below``, in points of the API's accuracy."""
    found = below(theft, defense, limit)
    return of(found[0], percent(found[0], VICTIM) - percent(found[0], DEFENDED), found[1]) if found else None


def gap(theft: Theft, defense: str, other: str, at: float) -> Found | None:
    """Return by how many points stolen accuracy is higher under a defense than under another of equal strength."""
    rows = theft.cells()
    return difference(at_strength(turned(rows, defense), at), at_strength(turned(rows, other), at), f"epsilon={at:g}")


def lost_by_argmax(theft: Theft) -> Found | None:
    """Return by how many points stolen accuracy falls, without a defense, if only top classes are used."""
    return difference(undefended(theft.cells()), undefended(theft.cells(recovery="argmax")))


def best(theft: Theft, defense: str) -> tuple[str, pd.DataFrame] | None:
    """Return the counter-move with the highest accuracy under a defense, and its records; None if there are none."""
    found = {name: turned(rows, defense) for name, rows in moves(theft).items()}
    found = {name: rows for name, rows in found.items() if len(rows)}
    if len(found) < 2:
        return None
    name = max(found, key=lambda name: percent(found[name]).mean())
    return name, found[name]


def best_move(theft: Theft, defense: str) -> Found | None:
    """Return the accuracy of the best counter-move."""
    found = best(theft, defense)
    return of(found[1], percent(found[1]), found[0]) if found else None


def kept_by(theft: Theft, defense: str) -> Found | None:
    """Return by how many points a defense reduces stolen accuracy in spite of the best counter-move."""
    found = best(theft, defense)
    return difference(undefended(theft.plain), found[1], found[0]) if found else None


def recovered(theft: Theft, defense: str) -> Found | None:
    """Return the accuracy of the best counter-move, divided by that of the undefended theft."""
    found = best(theft, defense)
    if not found:
        return None
    origin = undefended(theft.plain)
    return of(pd.concat([found[1], origin]), (percent(found[1]) / percent(origin)).dropna(), found[0])


def angle(theft: Theft, low: float, high: float) -> Found | None:
    """Return the mean angular deviation under MAD, in degrees, over the strengths in an interval."""
    rows = study(theft, BINS)
    rows = rows[(rows.defense == "mad") & rows.strength.between(low - 1e-9, high + 1e-9)]
    return of(rows, rows.groupby("seed").deviation_mean.mean()) if len(rows) else None


def greatest_angle(theft: Theft) -> Found | None:
    """Return the largest angular deviation, rounded up to a whole degree."""
    rows = study(theft, BINS)
    rows = rows[rows.defense == "mad"]
    ends = {}
    for seed, cells in rows.groupby("seed"):
        counts = angles(cells).sum(axis=1)
        ends[seed] = float(counts[counts > 0].index.max()) + 90 / len(counts)
    return of(rows, pd.Series(ends, dtype=float))


def loss_rise(theft: Theft, at: float) -> Found | None:
    """Return the adversary's last test loss minus its first, at a strength."""
    rows = study(theft, LOSSES)
    rows = at_strength(rows[rows.defense == "mad"], at)
    losses = {cell.seed: numbers(cell[LOSSES]) for _, cell in rows.iterrows()}
    return of(rows, pd.Series({seed: found[-1] - found[0] for seed, found in losses.items()}, dtype=float))


def budget_ratio(theft: Theft, at: float) -> Found | None:
    """Return the full budget divided by the budget at which the undefended theft equals the theft under MAD.

    The latter is interpolated. If the undefended theft is as good at the smallest measured budget already, the value is
    a lower bound.
    """
    rows = by_budget(theft)
    if rows.empty:
        return None
    largest = rows.budget.max()
    ours = at_strength(rows[(rows.defense == "mad") & (rows.budget == largest)], at)
    free = undefended(rows)
    found, least = {}, False
    for seed, left in percent(ours).items():
        known = 100 * free[free.seed == seed].groupby("budget").stolen_accuracy.mean().cummax()
        if len(known) > 1:
            least |= bool(left <= known.iloc[0])
            found[seed] = float(largest / equivalent(known, left))
    return of(pd.concat([ours, free]), pd.Series(found, dtype=float), "at least" if least else "")


def entropy(theft: Theft, defense: str, at: float) -> Found | None:
    """Return the mean entropy of a defense's answers, in bits, at a mean L1, interpolated between strengths."""
    rows = turned(theft.cells(), defense)
    if "answer_entropy" not in rows:
        return None
    known = rows.dropna(subset="answer_entropy").sort_values("l1_mean")
    reached = {seed: each for seed, each in known.groupby("seed") if each.l1_mean.min() <= at <= each.l1_mean.max()}
    values = {seed: np.interp(at, each.l1_mean, each.answer_entropy) for seed, each in reached.items()}
    return of(known[known.seed.isin(list(values))], pd.Series(values, dtype=float), f"L1 {at:g}")


MEASURES: dict[str, Measure] = {
    measure.__name__: measure
    for measure in (
        *(victim, stolen, stolen_within, reduction, error_ratio, l1_ratio, strongest, defended_below, spent_below),
        *(gap, lost_by_argmax, best_move, kept_by, recovered, angle, greatest_angle, loss_rise, budget_ratio),
        entropy,
    )
}
OF_NO_THIEF = ("victim", "angle", "greatest_angle", "loss_rise", "entropy")  # measures without the stolen model

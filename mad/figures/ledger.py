"""The ledger: the paper's numbers beside ours, one row per published number, victim and pool."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path

import pandas as pd

from mad.figures.cells import Theft
from mad.figures.groups import MEANING, mark
from mad.figures.measures import MEASURES, OF_NO_THIEF, Found

PUBLISHED = Path(__file__).with_name("published.csv")
ANY = "*"  # marks a number that the paper states for every victim
PLAIN = "mnist"
CELLS = "Table 1"  # its numbers are for one victim each
STATED = ("source", "victim", "claim", "published")
NUMBERS = ("spend", "limit", "at", "low", "high")


def published() -> pd.DataFrame:
    """Return the paper's numbers, ``published.csv``, with all columns as text."""
    return pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False)


def rows_of(found: Found | None, theft: Theft | None, measure: str) -> dict[str, object]:
    """Return our columns of a row of the ledger, with the overrides of its records; blank if there are none."""
    if found is None or theft is None:
        return {"victim": theft.victim if theft else "", "pool": theft.pool if theft else ""}
    values, rows = found.values.dropna(), found.rows
    seeds = sorted(int(seed) for seed in values.index)
    budgets, used = sorted(set(rows.budget)), rows[rows.seed.isin(seeds)]
    marked = "" if measure in OF_NO_THIEF else mark(used)
    return {
        "victim": theft.victim,
        "pool": theft.pool,
        "mean": f"{values.mean():.4g}{marked}",
        "deviation": f"{values.std():.2g}" if len(values) > 1 else "",
        "seeds": len(seeds),
        "where": "; ".join(filter(None, [found.where, MEANING if marked else ""])),
        "budget": " ".join(str(each) for each in budgets),
        "fingerprints": " ".join(sorted(set(used.fingerprint))),
    }


def ledger(thefts: list[Theft]) -> pd.DataFrame:
    """Return the ledger: the columns of ``published.csv``, then ours, blank where there are no records.

    A cell of Table 1, and a number that the paper states for MNIST, is joined to the records of its own victim if there
    are any. Other numbers are joined to the records of every victim in which they can be measured, since most of the
    paper's text is about CIFAR-10. Of a victim's thefts it is the one with the most queries in which the number can be
    measured, and of equals the one with the most records.
    """
    thefts = sorted(thefts, key=lambda theft: (theft.rows.budget.max(), len(theft.rows)), reverse=True)
    victims = sorted({theft.victim for theft in thefts})
    lines = []
    for _, stated in published().iterrows():
        own = [theft for theft in thefts if stated.victim in (theft.victim, ANY)]
        alone = stated.source == CELLS or (own and stated.victim == PLAIN)
        arguments = dict(part.split("=") for part in stated.arguments.split())
        typed = {key: float(value) if key in NUMBERS else value for key, value in arguments.items()}
        measure = partial(MEASURES[stated.measure], **typed)
        shown: list[tuple[Theft | None, Found | None]] = []
        for victim in victims:
            of_victim = [theft for theft in (own if alone else thefts) if theft.victim == victim]
            measured = ((theft, measure(theft)) for theft in of_victim)
            shown += islice((each for each in measured if each[1]), 1)
        for theft, found in shown or [(own[0] if own else None, None)]:
            ours = {f"our_{key}": value for key, value in rows_of(found, theft, stated.measure).items()}
            lines.append({name: stated[name] for name in STATED} | ours)
    order = ["victim", "pool", "mean", "deviation", "seeds", "where", "budget", "fingerprints"]
    columns = [*STATED, *(f"our_{name}" for name in order)]
    return pd.DataFrame(lines, columns=columns, dtype=object).fillna("")

"""The selection of records for the paper's figures: one comparison group per series."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from mad.figures.groups import counted, points
from mad.storage import settled

VICTIM = ["architecture", "victim_epochs", "victim_validation", "victim_seed"]  # in which victims of a name may differ
LENGTH = ["knockoff_epochs", "knockoff_min_steps", "knockoff_schedule"]  # how long a stolen model is trained
RECIPE = [*LENGTH, "knockoff_settings", "knockoff_learning_rate"]
FILLED: dict[str, Any] = {
    **{"architecture": "", "knockoff_architecture": ""},
    **{"attack_settings": "", "defense_settings": "", "strength_parameter": "epsilon", "knockoff_optimizer": ""},
    **{"victim_epochs": 0, "victim_validation": 0.0, "victim_seed": -1, "knockoff_epochs": 0},
    **{"knockoff_learning_rate": 0.0, "knockoff_min_steps": 0, "knockoff_schedule": "", "knockoff_settings": ""},
    **dict.fromkeys(("epsilon", "strength"), float("nan")),  # of defenses that have none
}


@dataclass(frozen=True)
class Theft:
    """All records of one victim and one pool.

    Args:
        victim: name of the victim.
        pool: name of the pool.
        rows: the records, as ``mad.storage.records.frame`` returns them.
    """

    victim: str
    pool: str
    rows: pd.DataFrame

    @cached_property
    def plain(self) -> pd.DataFrame:
        """Return the group of the paper's knockoff: random images, one query each, the victim's architecture.

        Its recipe adds nothing, if a group's does not, and is else the one of most knockoffs of this pool, whatever is
        done to the answers.
        """
        own = self.rows[self.rows.knockoff_architecture == self.rows.architecture]
        own = own[(own.attack == "knockoff") & (own.knockoff_optimizer == usual(own))]
        rows = own[(own.recovery == "none") & (own.attack_settings == "")]
        if (rows.knockoff_settings == "").any():
            rows = rows[rows.knockoff_settings == ""]
        rows = rows[rows.budget == rows.budget.max()]
        return group(most(rows, own, RECIPE))

    @cached_property
    def same_victim(self) -> pd.DataFrame:
        """Return the records of the victim of ``plain``, without those of other victims of the same name."""
        if self.plain.empty:
            return self.rows
        return self.rows[(self.rows[VICTIM] == self.plain[VICTIM].iloc[0]).all(axis=1)]

    @cached_property
    def _groups(self) -> dict[tuple[Any, ...], pd.DataFrame]:
        """The groups that were asked for before: the paper's numbers ask for the same few again and again."""
        return {}

    def cells(self, attack: str = "knockoff", recovery: str = "none", **other: str) -> pd.DataFrame:
        """Return the comparison group of an attack; settings that are not given are as in ``plain``.

        The frame is kept for the next call, so it must not be written to.

        Args:
            attack: name of the attack.
            recovery: name of the recovery.
            other: values of ``attack_settings``, ``knockoff_architecture``, ``knockoff_optimizer`` or
                ``knockoff_settings``.
        """
        asked = (attack, recovery, *sorted(other.items()))
        if asked not in self._groups:
            self._groups[asked] = self._cells(attack, recovery, other)
        return self._groups[asked]

    def _cells(self, attack: str, recovery: str, other: dict[str, str]) -> pd.DataFrame:
        rows = self.same_victim
        if attack != "online":  # attack online has a recipe of its own
            optimizer = other.setdefault("knockoff_optimizer", usual(rows))
            plain = self.plain
            own = plain if len(plain) else rows
            other.setdefault("knockoff_architecture", own.architecture.iloc[0] if len(own) else "")
            other.setdefault("knockoff_settings", plain.knockoff_settings.iloc[0] if len(plain) else "")
            if len(plain) and optimizer == plain.knockoff_optimizer.iloc[0]:
                rows = rows[(rows[LENGTH] == plain[LENGTH].iloc[0]).all(axis=1)]
        other.setdefault("attack_settings", "")
        return group(rows, attack=attack, recovery=recovery, **other)


def thefts(table: pd.DataFrame) -> list[Theft]:
    """Return the thefts in a table of records, one per victim and pool, sorted by the victim's name.

    Victims or pools of the same names, but for the victim's seed, are thefts of their own (``theft_group``). Beside the
    pool's name is then what tells them apart: the victim's architecture, or else the first digits of their groups.
    """
    known = {name: table[name].where(table[name].notna(), value) for name, value in FILLED.items() if name in table}
    whole = settled.thefts(table.assign(**{**FILLED, **known}))
    found = []
    for (victim, pool), every in whole.groupby(["victim", "pool"]):
        parts = list(every.groupby("theft_group"))
        networks = ["+".join(rows.architecture.unique()) for _, rows in parts]
        told = len(set(networks)) == len(parts) and all(networks)
        for (digits, rows), network in zip(parts, networks, strict=True):
            name = network if told else str(digits)[: settled.DIGITS]
            apart = f" [{name}]" if len(parts) > 1 and digits else ""
            found.append(Theft(str(victim), f"{pool}{apart}", rows))
    return found


def foremost(known: list[Theft]) -> list[Theft]:
    """Return each victim's theft with the most records, since the paper has one panel per victim."""
    chosen: dict[str, Theft] = {}
    for theft in known:
        if len(theft.rows) > len(chosen.setdefault(theft.victim, theft).rows):
            chosen[theft.victim] = theft
    return list(chosen.values())


def usual(rows: pd.DataFrame) -> str:
    """Return the most frequent optimizer of the knockoffs."""
    found = rows[rows.attack != "online"].knockoff_optimizer
    return str(found.mode().iloc[0]) if len(found) else ""


def group(rows: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """Return the records with the given values: those of the largest budget, of the largest comparison group."""
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    rows = rows[rows.budget == rows.budget.max()]
    return most(rows, rows, ["comparison_group", "victim_seed"])


def most(rows: pd.DataFrame, others: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return the records with those of their values in some columns that most of ``others`` have; of equals the least.

    ``others`` hold ``rows``.
    """
    if rows.empty:
        return rows
    there = others.groupby(columns).size()
    found: Any = there[there.index.isin(rows.set_index(columns).index)].idxmax()
    return rows[(rows[columns] == list(found)).all(axis=1)]


def undefended(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the records without a defense."""
    return rows[rows.defense == "none"]


def under(rows: pd.DataFrame, defense: str, parameter: str | None = None) -> pd.DataFrame:
    """Return the records of a defense with the settings of its YAML, or else with its most frequent settings.

    Args:
        rows: records of one comparison group.
        defense: name of the defense.
        parameter: the strength parameter to select, if records of the defense vary several.
    """
    rows = rows[rows.defense == defense]
    if parameter is not None and (rows.strength_parameter == parameter).any():
        rows = rows[rows.strength_parameter == parameter]
    if not (rows.defense_settings == "").any() and len(rows):
        return rows[rows.defense_settings == rows.defense_settings.mode().iloc[0]]
    return rows[rows.defense_settings == ""]


def curve(rows: pd.DataFrame, defense: str, parameter: str | None = None) -> pd.DataFrame:
    """Return the points of a defense's curve, by rising strength, with the undefended point first.

    Accuracies are in percent. The index is the strength, the columns are those of ``points``. The frame is empty if the
    defense has no records.
    """
    defended = under(rows, defense, parameter)
    if defended.empty:
        return defended
    every = pd.concat([points(undefended(rows).assign(strength=0.0)), points(defended)])
    return every[every.index.notna()]


def shown(theft: Theft, *parts: pd.DataFrame) -> str:
    """Return a panel's title: the victim, the pool, the budget and the seeds."""
    rows: Any = pd.concat(parts)
    budgets = " / ".join(f"{budget:,}" for budget in sorted(set(rows.budget)))
    seeds = [part.groupby(["defense", "defense_settings", "strength"], dropna=False).seed.nunique() for part in parts]
    said = counted([number for each in seeds for number in each])
    return f"{theft.victim} stolen with {theft.pool}\n{budgets} queries, {said}"

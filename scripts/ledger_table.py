"""Write the ledger into docs/reproduction.md: the numbers from ledger.csv, what they mean from verdicts.csv.

    mad-figures paper && cp outputs/figures/paper/ledger.csv docs/reproduction && python scripts/ledger_table.py

Says which numbers have no verdict yet, or a verdict and no number, and then exits with 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from mad.cli.command import Leave, Parser, command

DOCS = Path(__file__).parents[1] / "docs"
KEY = ["source", "victim", "claim", "our_victim", "our_pool"]
HEADS = ["stated in, of", "what", "paper", "ours", "victim, query set", "budget", "seeds", "same conclusion", "why"]
START, END = "<!-- ledger: written by scripts/ledger_table.py -->\n", "<!-- end of the ledger -->\n"


def found(docs: Path = DOCS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the ledger's rows with their verdicts, and the verdicts that no row is there for."""
    ledger, verdicts = (
        pd.read_csv(docs / "reproduction" / name, dtype=str, keep_default_na=False)
        for name in ("ledger.csv", "verdicts.csv")
    )
    joined = ledger.merge(verdicts, on=KEY, how="outer", indicator=True, validate="one_to_one")
    order = ledger[KEY].reset_index(names="row")
    joined = joined.merge(order, on=KEY, how="left").sort_values("row").astype({"_merge": str}).fillna("")
    return joined[joined._merge != "right_only"], joined[joined._merge == "right_only"]


def table(rows: pd.DataFrame) -> str:
    """Return the rows as Markdown."""
    lines = [HEADS, ["---"] * len(HEADS)]
    for _, row in rows.iterrows():
        own = row.victim in ("*", row.our_victim) or not row.our_victim
        number = row.our_mean + (f" ± {row.our_deviation}" if row.our_deviation else "")
        lines.append(
            [
                row.source + ("" if own else f", {row.victim}"),
                *(row.claim, row.published, number + (f" ({row.our_where})" if row.our_where else "")),
                f"{row.our_victim} from {row.our_pool}" if row.our_victim else row.victim,
                *(row.our_budget, row.our_seeds, row.same, row.why),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@command
def main() -> None:
    """Rewrite the part of the document between its two marks."""
    Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows, idle = found()
    document = DOCS / "reproduction.md"
    before, _, rest = document.read_text().partition(START)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{START}\n{table(rows)}\n{END}{after}")
    for what, which in (("no verdict", rows[rows.same == ""]), ("no number", idle)):
        for _, row in which.iterrows():
            print(f"{what}: {', '.join(row[name] for name in KEY)} {row.our_mean}")
    raise Leave(int(len(idle) > 0 or (rows.same == "").any()))


if __name__ == "__main__":
    main()

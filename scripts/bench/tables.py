"""Print JSON files of benchmarks as Markdown: python scripts/bench/tables.py docs/bench/*.json."""

from __future__ import annotations

import json
from pathlib import Path

from common import show

from mad.cli.command import Parser, command


def table(path: Path) -> str:
    """Return one file as a Markdown table under its machine."""
    found = json.loads(path.read_text())
    headings = list(dict.fromkeys(key for row in found["rows"] for key in row))
    lines = [headings, ["---"] * len(headings), *([show(row.get(key)) for key in headings] for row in found["rows"])]
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    return f"{found['title']} ({machine})\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


@command
def main() -> None:
    """Print the tables."""
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    print("\n\n".join(table(each) for each in parser.parse_args().files))


if __name__ == "__main__":
    main()

"""``mad-report``: one HTML page that tells what all records say, or their tables in LaTeX or CSV."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from mad.cli import configs
from mad.cli.command import Parser, command
from mad.cli.figures import add_records, given_records, listed, no_record

ELSEWHERE = "say --to FILE, in a folder you may write"
ENDINGS = {"html": ".html", "latex": ".tex", "csv": ".csv"}


@command
def main() -> None:
    """Enter ``mad-report``: records to a page; nothing is trained."""
    parser = Parser(prog="mad-report", description="Write a report of the records of earlier runs; trains nothing.")
    add_records(parser)
    parser.add_argument("--to", help="the file to write (default: report.html, .tex or .csv in the outputs folder)")
    parser.add_argument("--format", default="html", choices=list(ENDINGS), help="html (default), latex or csv")
    given = parser.parse_args()
    outputs, others = given_records(given)
    to = Path(configs.home("--to", given.to)) if given.to is not None else outputs / f"report{ENDINGS[given.format]}"
    from mad.storage import records
    from mad.storage.files import advising, check_writable, locked, write

    with advising(ELSEWHERE):
        check_writable(to)
    table = records.read(outputs, others)
    if table.empty:
        raise no_record(outputs)
    files: dict[Path, bytes] = {}
    if given.format == "html":
        from mad.report import page

        files[to] = page.html(table)
    else:
        from mad.report import contents, latex_csv

        thefts = contents.read(table)
        if given.format == "latex":
            files[to] = latex_csv.latex(thefts)
        else:
            for name, content in latex_csv.csv(thefts).items():
                files[to.with_name(f"{to.stem}-{name}{to.suffix}")] = content
    # Whoever writes records.csv meanwhile would take a half-written page beside it for what a dead process left.
    beside = outputs.is_dir() and to.parent.resolve() == outputs.resolve()
    with advising(ELSEWHERE), locked(outputs, Path("records.csv")) if beside else nullcontext():
        for file, content in files.items():
            write(file, content)
    listed(list(files))

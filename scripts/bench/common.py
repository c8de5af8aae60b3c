"""What every benchmark here shares: paired timings, a roofline, a table, and a JSON file."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mad.cli.command import Parser
from mad.device import choose
from mad.errors import check_choice, check_number

Run = Callable[[], Any]


def arguments(description: str | None, **extra: Any) -> argparse.Namespace:
    """Return the command line every benchmark takes; ``extra`` maps further names to their defaults."""
    parser = Parser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timings whose median is reported")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=None, help="where to write the numbers")
    for name, default in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = parser.parse_args()
    least = {name: min(1, default) for name, default in extra.items() if isinstance(default, int)}
    for name, low in {"repeats": 1, "threads": 1, **least}.items():
        check_number(f"--{name.replace('_', '-')}", getattr(given, name), low)
    choose(given.device)
    torch.set_num_threads(given.threads)
    return given


def several(name: str, text: str, choices: Iterable[str]) -> list[str]:
    """Return the words of an argument that lists some of the choices."""
    words = text.split(",")
    for word in words:
        check_choice(f"--{name}", word, tuple(choices))
    return words


def seconds(run: Run, device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the wall time of one call, the device's queue emptied before and after; or the time of another clock."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = clock()
    run()
    wait()
    return clock() - start


def paired(
    runs: Mapping[str, Run], repeats: int, device: str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time each run ``repeats`` times in turn, A B A B ..., after one call each that is not counted.

    Machines drift: a ratio is the median of ``ratios``, taken pair by pair, and never one of two sessions.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, device, clock))
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the pairwise ratios of two lists of seconds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def matrix_rate(device: str = "cpu", size: int = 2048, repeats: int = 5) -> float:
    """Return the floating-point operations a second that a large float32 matrix product reaches here and now."""
    a, b = torch.randn(2, size, size, device=device)
    return 2 * size**3 / statistics.median(paired({"product": lambda: a @ b}, repeats, device)["product"])


def machine(device: str) -> dict[str, Any]:
    """Return what the numbers were measured on."""
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
        if Path("/proc/cpuinfo").exists()
        else iter(()),
        platform.processor(),
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matrix_gflops": round(matrix_rate(device) / 1e9, 1),
    }


def report(title: str, rows: Sequence[Mapping[str, Any]], given: argparse.Namespace) -> None:
    """Print rows as a table, and write them with what the machine is to ``--json``.

    A row's ``bar`` and ``met`` columns, where it has them, say what was promised and whether it was kept.
    """
    described = machine(given.device)
    console = Console(width=160, highlight=False)
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    headings = list(dict.fromkeys(key for row in rows for key in row))
    for heading in headings:
        table.add_column(heading, justify="left" if isinstance(rows[0].get(heading), str) else "right")
    for row in rows:
        table.add_row(*(show(row.get(heading)) for heading in headings))
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in described.items()))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"title": title, "machine": described, "rows": list(rows)}, indent=2) + "\n")
        console.print(str(given.json))


def show(value: Any) -> str:
    """Return a cell's text: three significant digits, thousands apart."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)

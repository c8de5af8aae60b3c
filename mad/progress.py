"""Terminal output: progress on stderr while something long runs, results on stdout."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:  # torch takes seconds to import, and a mistake on the command line needs none of it
    from torch import Tensor


class Terminal(Console):
    """Shows text as it is: no markup, no character that steers a terminal, and escapes for what it cannot encode."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Return text that is safe to show."""
        shown = "".join("?" if unicodedata.category(each) == "Cc" and each not in "\n\t" else each for each in text)
        known = shown.encode(self.encoding, errors="backslashreplace").decode(self.encoding)
        return super().render_str(known, **{**how, "markup": False})


# A narrow terminal or a file wraps lines itself: folding numbers inside their columns is unreadable.
out = Terminal(highlight=False, width=max(120, shutil.get_terminal_size().columns))
err = Terminal(stderr=True, highlight=False)
REFRESHES_A_SECOND = 4
plain = False  # several processes print at once: lines, and no bars


@contextmanager
def bar(task: str, total: int) -> Iterator[Callable[[int, str, Tensor | None], None]]:
    """Show a bar over ``total`` images: stage, loss, images per second, time gone and left.

    Yields a function of (images done, stage, loss). Nothing is drawn where stderr is no terminal.
    """
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[stage]} {task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    watched = err.is_terminal and not plain
    with Progress(*columns, console=err, disable=not watched, refresh_per_second=REFRESHES_A_SECOND) as progress:
        row = progress.add_task(task, total=total, stage="", loss="", rate="")
        shown = -1.0

        def advance(images: int, stage: str, loss: Tensor | None = None) -> None:
            nonlocal shown
            now = progress.get_time()
            progress.update(row, advance=images)
            # Reading a loss waits for the device, so it is read only as often as it can be seen.
            if watched and now - shown > 1 / REFRESHES_A_SECOND:
                shown = now
                speed = progress.tasks[row].speed
                progress.update(
                    row,
                    stage=stage,
                    loss="" if loss is None else f"loss {loss.item():.3f}",
                    rate=f"{speed:,.0f} images/s" if speed else "",
                )

        yield advance

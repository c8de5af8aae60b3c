"""Terminal output: progress bars and messages on stderr, results on stdout."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:  # torch takes seconds to import, and a mistake on the command line needs none of it
    from torch import Tensor


class Terminal(Console):
    """A console that prints text literally: no markup or control characters, and escapes for unsupported characters."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Return text that is safe to show."""
        shown = "".join("?" if unicodedata.category(each) == "Cc" and each not in "\n\t" else each for each in text)
        known = shown.encode(self.encoding, errors="backslashreplace").decode(self.encoding)
        return super().render_str(known, **{**how, "markup": False})


FILE = 80  # characters per line in a file or a pipe
out = Terminal(highlight=False)
if not out.is_terminal:
    out.width = FILE
err = Terminal(stderr=True, highlight=False)
REFRESHES_A_SECOND = 4
plain = False  # True prints lines instead of bars, if several processes print at once


def columns_for(name: int, width: int) -> list[ProgressColumn]:
    """Return the columns of a progress bar that fit a terminal; the time left is the last to be dropped.

    Args:
        name: length of the task's name, in characters.
        width: width of the terminal, in characters.
    """
    known: list[tuple[int, int, ProgressColumn]] = [  # in order of display: rank, most characters
        (0, name, TextColumn("{task.description}")),
        (3, 12, BarColumn(bar_width=12)),
        (2, 15, TextColumn("{task.fields[stage]}")),
        (5, 11, TextColumn("{task.fields[loss]}")),
        (6, 18, TextColumn("{task.fields[rate]}")),
        (4, 8, TimeElapsedColumn()),
        (1, 8, TimeRemainingColumn()),
    ]
    room, shown = width, []
    for place in sorted(range(len(known)), key=lambda place: known[place][0]):
        rank, taken, _ = known[place]
        if taken < room or not rank:
            shown.append(place)
            room -= taken + 1
        else:
            break
    return [known[place][2] for place in sorted(shown)]


@contextmanager
def bar(task: str, total: int) -> Iterator[Callable[[int, str, Tensor | None], None]]:
    """Show a progress bar over ``total`` images: stage, loss, images per second, time elapsed and left.

    Yields a function of (images done since its last call, stage, loss). Nothing is drawn if stderr is not a terminal.
    """
    columns = columns_for(len(task), err.width)
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


class Pace:
    """How long some work still takes, by what its steps have taken.

    Args:
        total: the number of steps.
    """

    def __init__(self, total: int) -> None:
        self._left, self._counted, self._took = total, 0, 0.0

    def done(self, steps: int, seconds: float | None = None) -> None:
        """Note steps that are done, and the seconds that they took; None for those that had been done before."""
        self._left -= steps
        if seconds is not None:
            self._counted, self._took = self._counted + steps, self._took + seconds

    @property
    def left(self) -> str:
        """A text of the time that is left, from the mean of the steps that were timed."""
        return time_left(max(0, self._left) * self._took / max(1, self._counted))


def time_left(seconds: float) -> str:
    """Return a text of the time that is left."""
    return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"

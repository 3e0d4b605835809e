"""
What the commands show: results on stdout, progress and messages on stderr.

Progress is a bar on a terminal, and one plain line a step anywhere else.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from gear_plugin.jobs import Progress

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def print_json(value: Any) -> None:
    """*value* on stdout."""
    print(json.dumps(value, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """
    Columns on stdout, three blanks apart, as docker's own lists are.

    Never cut to the terminal's width: what is printed can be piped and copied.
    """
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("   ".join(cells).rstrip())


def size(count_bytes: int) -> str:
    """Bytes for people, in docker's decimal units: `999 B`, `1.23 kB`, `45.6 MB`."""
    if count_bytes < 1000:
        return f"{count_bytes} B"
    value = float(count_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        # 999.5 would be shown as 1e+03.
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def percent(part: int, whole: int) -> str:
    """How much of *whole* that is; all of nothing is 100 %."""
    return f"{100 * part / whole:.0f} %" if whole else "100 %"


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Where a job's steps are shown while the block runs."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich import progress as rich_progress
    from rich.console import Console

    with rich_progress.Progress(
        rich_progress.SpinnerColumn(finished_text=" "),
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bars:
        shown = _Bars(bars)
        yield shown
        shown.finish()


class _Lines:
    """One line a step."""

    def step(self, text: str, *, total_bytes: int = 0) -> None:
        print(f"{text} ({size(total_bytes)})" if total_bytes else text, file=sys.stderr, flush=True)

    def advance(self, count_bytes: int) -> None:
        pass

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Bars:
    """One bar a step; rich is safe to call from any thread."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: Any = None

    def step(self, text: str, *, total_bytes: int = 0) -> None:
        self.finish()
        self._task = self._bars.add_task(text, total=total_bytes or None)

    def advance(self, count_bytes: int) -> None:
        self._bars.advance(self._task, count_bytes)

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def finish(self) -> None:
        """The step at hand is done, whatever its total said."""
        if self._task is not None:
            self._bars.update(self._task, total=1, completed=1)

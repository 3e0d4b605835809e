"""
The figures for people: one table a link, and the goals with what was reached.

Pure: rows in, rich tables and lines out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.table import Table

from bench.ordinary import BASE, LARGE
from bench.results import MEASURES, OVERLAY2, Figures, Row

LARGE_IMAGE_BYTES = 300e6
KERNEL_WAYS = ("gear-direct", "gear-nested")
"""The ways in which reading cached files is the kernel's work alone."""
_CACHED = {
    "warm_read_cpu_s": "warm read of cached files, processor time: 1.05x at most",
    "warm_stat_cpu_s": "warm stat of cached files, processor time: 1.05x at most",
}
"""Judged by processor time: nothing is waited for, and it does not tell how busy others are."""

_LAYERS = ("load_s", "pull_s", "commit_s", "image_build_s")
_COMINGS = ("run_many_s", "run_parallel_s", "rm_s")


@dataclass(frozen=True)
class Verdict:
    """One goal, for one image and system: what was asked, what was reached."""

    goal: str
    about: str
    reached: str
    met: bool


def tables(rows: Iterable[Row]) -> Iterator[Table]:
    """A table for each link: a line an image and measure, a column a system."""
    figures = Figures(rows)
    for link in dict.fromkeys(row.link for row in figures):
        yield _table(link, figures)


def _table(link: str, figures: Figures) -> Table:
    rows = [row for row in figures if row.link == link]
    systems = list(dict.fromkeys(row.system for row in rows))
    systems.sort(key=lambda system: (system != OVERLAY2, system))
    title = "no link involved" if link == "-" else f"link: {link}"
    table = Table("image", "measure", *systems, title=title)
    about = dict.fromkeys((row.image, row.measure) for row in rows)
    order = list(MEASURES)
    last = ""
    for image, measure in sorted(about, key=lambda pair: (pair[0], order.index(pair[1]))):
        cells = [_cell(figures, figures.get(measure, image, link, system)) for system in systems]
        if last and image != last:
            table.add_section()
        table.add_row("" if image == last else image, MEASURES[measure].title, *cells)
        last = image
    return table


def _cell(figures: Figures, row: Row | None) -> str:
    if row is None:
        return ""
    shown = value(row.median, row.unit)
    ratio = figures.ratio(row)
    return shown if ratio is None or row.system == OVERLAY2 else f"{shown} ({ratio:.2f}x)"


def value(amount: float, unit: str) -> str:
    """A number with its unit, for people."""
    match unit:
        case "B" if amount >= 1e5:
            return f"{amount / 1e6:.1f} MB"
        case "B":
            return f"{amount:.1f} B"
        case "s" if amount < 0.01:
            return f"{amount * 1e3:.3f} ms"
        case "s":
            return f"{amount:.3f} s" if amount < 1 else f"{amount:.2f} s"
        case "reads" | "%":
            return f"{amount:.3f}"
        case "objects/s":
            return f"{amount:,.0f}/s"
        case _:
            return f"{amount:.1f} {unit}"


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """Each goal of the first benchmark, for each row that it is about."""
    figures = Figures(rows)
    found = []
    for row in figures:
        if row.system == OVERLAY2:
            continue
        found += list(_judge(row, figures))
    return found


def _judge(row: Row, figures: Figures) -> Iterator[Verdict]:
    ratio = figures.ratio(row)
    about = f"{row.image}, {row.system}"
    large = figures.image_bytes(row.image) > LARGE_IMAGE_BYTES
    if row.measure == "pull_run_s" and row.link == "100mbit" and large and ratio:
        goal = "pull + run at 100 Mbit/s, images over 300 MB: 4x faster"
        yield Verdict(goal, about, f"{1 / ratio:.1f}x", ratio <= 1 / 4)
    elif row.measure == "warm_start_s" and ratio:
        yield Verdict("warm start: 1.10x at most", about, f"{ratio:.2f}x", ratio <= 1.10)
    elif row.measure in _CACHED and row.system in KERNEL_WAYS and ratio:
        yield Verdict(_CACHED[row.measure], about, f"{ratio:.2f}x", ratio <= 1.05)
    elif row.measure in _LAYERS and row.image in (LARGE, BASE) and row.link == "-" and ratio:
        goal = "ordinary layers: 1.20x at most"
        about += f", {MEASURES[row.measure].title}"
        yield Verdict(goal, about, f"{ratio:.2f}x", ratio <= 1.20)
    elif row.measure in _COMINGS and ratio:
        goal = "docker run and rm: 1.05x at most"
        about += f", {MEASURES[row.measure].title}"
        yield Verdict(goal, about, f"{ratio:.2f}x", ratio <= 1.05)
    elif row.measure == "apply_s":
        goal = "apply of a 50,000-file index: 0.3 s at most"
        yield Verdict(goal, about, f"{row.median:.2f} s", row.median <= 0.3)


def goals(found: Iterable[Verdict]) -> Table:
    """The verdicts as a table."""
    table = Table("goal", "image, system", "reached", "", title="goals")
    last = ""
    for verdict in sorted(found, key=lambda verdict: verdict.goal):
        goal = "" if verdict.goal == last else verdict.goal
        table.add_row(goal, verdict.about, verdict.reached, "met" if verdict.met else "NOT met")
        last = verdict.goal
    return table

"""The benchmark's tables, and its verdicts on the goals."""

from __future__ import annotations

import io

import pytest
from bench import report
from bench.results import OVERLAY2, Results
from rich.console import Console


def shown(made: Results) -> str:
    """The tables as text."""
    console = Console(file=io.StringIO(), width=160)
    for table in report.tables(made.rows()):
        console.print(table)
    console.print(report.goals(report.verdicts(made.rows())))
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def compared(measure: str, link: str, old: float, new: float, system: str) -> Results:
    """One measure of a 618 MB image on overlay2 and on *system*."""
    made = Results()
    made.add("image_bytes", "scipy", "-", OVERLAY2, 618e6)
    made.add(measure, "scipy", link, OVERLAY2, old)
    made.add(measure, "scipy", link, system, new)
    return made


def test_there_is_a_table_for_each_link_and_a_column_for_each_system() -> None:
    """
    overlay2 first; a ratio stands beside every other system's median.
    """
    made = compared("pull_run_s", "100mbit", 30.0, 6.0, "gear-nested")
    made.add("pull_run_s", "scipy", "loopback", OVERLAY2, 10.0)
    text = shown(made)
    assert "link: 100mbit" in text
    assert "link: loopback" in text
    assert "6.00 s (0.20x)" in text
    assert text.index("overlay2") < text.index("gear-nested")


@pytest.mark.parametrize(
    ("measure", "link", "old", "new", "system", "met"),
    [
        ("pull_run_s", "100mbit", 40.0, 10.0, "gear-direct", True),
        ("pull_run_s", "100mbit", 40.0, 10.1, "gear-fuse-tree", False),
        ("pull_run_s", "loopback", 40.0, 39.0, "gear-direct", None),
        ("warm_start_s", "loopback", 1.0, 1.1, "gear-nested", True),
        ("warm_start_s", "100mbit", 1.0, 1.2, "gear-nested", False),
        ("warm_read_cpu_s", "loopback", 1.0, 1.05, "gear-direct", True),
        ("warm_stat_cpu_s", "loopback", 1.0, 1.06, "gear-nested", False),
        ("warm_stat_cpu_s", "loopback", 1.0, 3.0, "gear-fuse-tree", None),
        ("warm_stat_s", "loopback", 1.0, 3.0, "gear-direct", None),
        ("apply_s", "-", 1.0, 0.3, "gear-direct", True),
        ("apply_s", "-", 1.0, 0.31, "gear-direct", False),
        ("load_s", "-", 1.0, 9.0, "gear-direct", None),
    ],
)
def test_goals_are_judged_by_the_medians(
    measure: str, link: str, old: float, new: float, system: str, met: bool | None
) -> None:
    """
    None: no goal is about this row.
    """
    found = report.verdicts(compared(measure, link, old, new, system).rows())
    assert [verdict.met for verdict in found] == ([] if met is None else [met])


def test_a_small_image_has_no_pull_goal() -> None:
    """
    The goal is for images over 300 MB, and for those whose size is known.
    """
    made = Results()
    made.add("pull_run_s", "web", "100mbit", OVERLAY2, 10.0)
    made.add("pull_run_s", "web", "100mbit", "gear-direct", 9.0)
    assert report.verdicts(made.rows()) == []
    made.add("image_bytes", "web", "-", OVERLAY2, 254e6)
    assert report.verdicts(made.rows()) == []


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (0.000031, "s", "0.031 ms"),
        (0.0271, "s", "0.027 s"),
        (35.19, "s", "35.19 s"),
        (64.96, "B", "65.0 B"),
        (246.8e6, "B", "246.8 MB"),
        (37.06, "MB/s", "37.1 MB/s"),
        (2.0125, "reads", "2.013"),
        (5123.4, "objects/s", "5,123/s"),
    ],
)
def test_numbers_are_shown_with_their_unit(amount: float, unit: str, text: str) -> None:
    """
    As many digits as say something.
    """
    assert report.value(amount, unit) == text

"""Sizes, tables and progress."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from gear_plugin.cli import output


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (14_848, "14.8 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (26_099_511, "26.1 MB"),
        (10**9, "1 GB"),
        (2 * 10**15, "2e+03 TB"),
    ],
)
def test_sizes_have_three_digits(count_bytes: int, text: str) -> None:
    """
    In docker's decimal units.
    """
    assert output.size(count_bytes) == text


def test_a_table_is_as_wide_as_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """
    Never cut to a terminal's width, and without blanks at the end of a line.
    """
    long = "registry.example/" + "x" * 200
    output.print_table(("IMAGE", "SIZE"), [(long, "1 B"), ("a", "22 B")])
    assert capsys.readouterr().out.splitlines() == [
        "IMAGE".ljust(len(long)) + "   SIZE",
        f"{long}   1 B",
        "a".ljust(len(long)) + "   22 B",
    ]


def test_without_a_terminal_each_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """
    With its size when that is known; bytes that are done make no noise in a log.
    """
    with output.progress() as progress:
        progress.step("saving", total_bytes=1500)
        progress.advance(700)
        progress.step("merging")
    assert capsys.readouterr() == ("", "saving (1.5 kB)\nmerging\n")


def read_all(terminal: int) -> str:
    """To the end; a terminal passes on what it was given bit by bit."""
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 1 << 16)
        except OSError:  # nobody has the other side any more
            return shown.decode()


def test_on_a_terminal_steps_are_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    On stderr; each ends as done, also when its total was only a guess.
    """
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        with output.progress() as progress:
            progress.step("saving [x]", total_bytes=1000)
            progress.advance(10)
            progress.step("merging")
    last = read_all(ours).split("\r\n")
    os.close(ours)
    assert any("saving [x]" in line and "100%" in line for line in last)
    assert any("merging" in line and "100%" in line for line in last)

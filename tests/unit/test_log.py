"""What lines of the log look like."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from gear_plugin import log


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def said(capsys: pytest.CaptureFixture[str], level: str, process: str) -> str:
    log.setup(level, process)
    logging.getLogger("x").warning("the %s is full", "disk")
    return capsys.readouterr().err


def test_a_command_speaks_to_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "info", log.COMMAND) == "gear: the disk is full\n"


@pytest.mark.parametrize(("level", "process"), [("info", "client"), ("debug", log.COMMAND)])
def test_other_lines_are_dated(
    capsys: pytest.CaptureFixture[str], level: str, process: str
) -> None:
    """
    Daemons' are, and those of who looks for an error.
    """
    line = said(capsys, level, process)
    assert re.fullmatch(rf"\d{{4}}-\S+ \S+ {process} WARNING x: the disk is full\n", line)

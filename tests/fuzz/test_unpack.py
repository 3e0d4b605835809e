"""The unpacker against hostile layers, and against the model of what a container shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import unpack

pytestmark = pytest.mark.root


def run(cases: Callable[[int, Path], bool], base: Path, count: int) -> int:
    """Run cases 0 to *count*; how many were accepted."""
    accepted = 0
    for number in range(count):
        folder = base / str(number)
        folder.mkdir()
        try:
            accepted += cases(number, folder)
        except AssertionError as error:
            raise AssertionError(f"case {number}: {error}") from error
        shutil.rmtree(folder)
    return accepted


def test_hostile_layers_stay_inside(tmp_path: Path) -> None:
    """
    Symlinks, hard links, devices and names that lead away: a file beside the
    layer is as it was, and what is unpacked is what the model says.
    """
    assert run(unpack.try_hostile, tmp_path, 120) > 15


def test_two_layers_show_what_the_model_says(tmp_path: Path) -> None:
    """
    `gear build` and a node that unpacks and mounts agree on what a container sees.
    """
    assert run(unpack.try_lawful, tmp_path, 120) > 25

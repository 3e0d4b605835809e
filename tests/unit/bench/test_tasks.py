"""What images are run for, and the image of many files."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from bench.supply import write_many
from bench.systems import names
from bench.tasks import Task


@pytest.mark.parametrize(
    ("output", "done"),
    [("1.0\n", True), ("a warning\n1.0\n", True), ("1.0", True), ("", False), ("1.0\nno\n", False)],
)
def test_a_task_is_done_when_its_last_line_is_right(output: str, *, done: bool) -> None:
    """
    A run that printed something else must not count as a fast one.
    """
    assert Task("python3", (), "1.0").is_done(output) is done


def test_a_task_runs_its_own_program_without_a_network() -> None:
    """
    Whatever the image's entrypoint is.
    """
    words = Task("sh", ("-c", "true"), "").run_words("reg/app:1")
    assert words[:3] == ("run", "--rm", "--network")
    assert words[-5:] == ("--entrypoint", "sh", "reg/app:1", "-c", "true")


def test_systems_are_overlay2_and_a_gear_for_each_way() -> None:
    """
    The names that stand in results.json.
    """
    ways = ("direct", "nested", "fuse-tree")
    assert names(ways) == ["overlay2", "gear-direct", "gear-nested", "gear-fuse-tree"]


def test_the_image_of_many_files_is_always_the_same(tmp_path: Path) -> None:
    """
    No two files are alike, so each is an object of its own.
    """
    for name in ("a.tar", "b.tar"):
        write_many(tmp_path / name, 250)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        members = archive.getmembers()
        files = [member for member in members if member.isreg()]
        contents = {archive.extractfile(member).read() for member in files}  # type: ignore[union-attr]
    assert len(contents) == 250
    assert len(members) - len(files) == 3
    assert len({member.name for member in files}) == 250

"""What is compared, and the image of many files."""

from __future__ import annotations

import tarfile
from pathlib import Path

from bench.supply import write_many
from bench.systems import names


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

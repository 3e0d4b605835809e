from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gear_plugin.errors import BadConfig, Conflict, ImageNotFound, IndexDamaged
from gear_plugin.jobs import BuildFolder, BuildResult
from gear_plugin.names import ImageId

IMAGE = ImageId.parse("[::1]:5000/team/nginx:1")
NEIGHBOUR = ImageId.parse("[::1]:5000/team/nginx:1-alpine")
RESULT = BuildResult(
    image=str(IMAGE),
    gear_image=str(IMAGE.gear),
    gear_image_id="sha256:1",
    layer="sha256:2",
    index="3",
    manifest="4",
    original_id="sha256:5",
    original_bytes=6,
    layers=7,
    files=8,
    directories=9,
    objects=10,
    object_bytes=11,
    index_bytes=12,
    seconds=13.5,
)


def make(folder: BuildFolder, mark: str) -> None:
    """A build that leaves *mark*."""
    with folder.replaced() as fresh:
        (fresh.path / "spool").write_text("large")
        (fresh.files / mark).write_text(mark)
        fresh.write_result(RESULT)


def temporaries(root: Path) -> list[str]:
    return [path.name for path in (root / "build").glob(".tmp-*")]


def test_folder_appears_whole_and_without_scratch(tmp_path: Path) -> None:
    """
    Only files/ and build/ stay.
    """
    folder = BuildFolder.of(tmp_path, IMAGE)
    make(folder, "a")
    assert sorted(path.name for path in folder.path.iterdir()) == ["build", "files"]
    assert temporaries(tmp_path) == []
    with folder.in_use() as result:
        assert result == RESULT


def test_a_newer_build_replaces_the_older_as_a_whole(tmp_path: Path) -> None:
    """
    Nothing of the older one is left in it.
    """
    folder = BuildFolder.of(tmp_path, IMAGE)
    make(folder, "a")
    make(folder, "b")
    assert [path.name for path in folder.files.iterdir()] == ["b"]


def test_a_failed_build_leaves_the_older_one(tmp_path: Path) -> None:
    """
    Whatever the block raises, and with nothing half-made beside it.
    """
    folder = BuildFolder.of(tmp_path, IMAGE)
    make(folder, "a")
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), folder.replaced() as fresh:
            (fresh.files / "b").write_text("b")
            raise error
        assert [path.name for path in folder.files.iterdir()] == ["a"]
        assert temporaries(tmp_path) == []


def test_two_builds_of_one_image_exclude_each_other(tmp_path: Path) -> None:
    """
    The second is refused at once, and the first does not notice.
    """
    folder = BuildFolder.of(tmp_path, IMAGE)
    with folder.replaced() as fresh:
        with pytest.raises(Conflict, match=r"nginx:1 is being built"), folder.replaced():
            pass
        assert fresh.files.is_dir()
    make(folder, "b")


def test_builds_of_two_images_leave_each_other_alone(tmp_path: Path) -> None:
    """
    Even when one name begins with the other: nginx:1 and nginx:1-alpine.
    """
    ours, theirs = BuildFolder.of(tmp_path, IMAGE), BuildFolder.of(tmp_path, NEIGHBOUR)
    with theirs.replaced() as fresh:
        make(ours, "a")
        assert fresh.files.is_dir()
    assert theirs.path.is_dir()
    with ours.replaced() as fresh:
        make(theirs, "b")
        assert fresh.files.is_dir()


@pytest.mark.parametrize("next_one", [IMAGE, NEIGHBOUR])
def test_what_a_killed_build_left_goes_with_the_next_build(
    tmp_path: Path, next_one: ImageId
) -> None:
    """
    Of whatever image: nobody may ever build the killed one again.
    """
    code = (
        "import os, sys; from pathlib import Path\n"
        "from gear_plugin.jobs import BuildFolder; from gear_plugin.names import ImageId\n"
        "folder = BuildFolder.of(Path(sys.argv[1]), ImageId.parse(sys.argv[2]))\n"
        "with folder.replaced() as fresh:\n"
        "    (fresh.files / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path, str(IMAGE)], check=False)
    assert killed.returncode == -9
    assert len(temporaries(tmp_path)) == 1
    assert not BuildFolder.of(tmp_path, IMAGE).path.exists()
    make(BuildFolder.of(tmp_path, next_one), "a")
    assert temporaries(tmp_path) == []


def test_other_peoples_files_are_not_swept(tmp_path: Path) -> None:
    """
    Only what has the form of a temporary is one.
    """
    (tmp_path / "build" / ".tmp-notes").mkdir(parents=True)
    make(BuildFolder.of(tmp_path, IMAGE), "a")
    assert temporaries(tmp_path) == [".tmp-notes"]


def test_no_build_replaces_a_folder_that_is_being_pushed(tmp_path: Path) -> None:
    """
    And a push does not begin on one that is being replaced; two pushes may run.
    """
    folder = BuildFolder.of(tmp_path, IMAGE)
    make(folder, "a")
    with folder.in_use(), folder.in_use(), pytest.raises(Conflict), folder.replaced():
        pass
    with folder.replaced(), pytest.raises(Conflict), folder.in_use():
        pass


def test_an_image_that_was_never_built_is_not_found(tmp_path: Path) -> None:
    """
    The message says what to run.
    """
    hint = r"was not built in .*; run `gear build \[::1\]:5000/team/nginx:1`"
    with pytest.raises(ImageNotFound, match=hint), BuildFolder.of(tmp_path, IMAGE).in_use():
        pass
    make(BuildFolder.of(tmp_path, NEIGHBOUR), "a")
    with pytest.raises(ImageNotFound, match=hint), BuildFolder.of(tmp_path, IMAGE).in_use():
        pass


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"image": "x"', "\x00" * 10])
def test_a_damaged_record_says_so(tmp_path: Path, damage: str) -> None:
    """
    As after a power failure: never a traceback, never a wrong push.
    """
    folder = BuildFolder.of(tmp_path, IMAGE)
    make(folder, "a")
    (folder.path / "build" / "build.json").write_text(damage)
    with pytest.raises(IndexDamaged, match="build again"), folder.in_use():
        pass


def test_a_root_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    """
    One line for the user, not a traceback.
    """
    root = tmp_path / "file"
    root.write_text("no folder")
    folder = BuildFolder.of(root, IMAGE)
    with pytest.raises(BadConfig, match="--root"), folder.replaced():
        pass
    with pytest.raises(BadConfig, match="--root"), folder.in_use():
        pass


def test_time_of_build_is_in_seconds(tmp_path: Path) -> None:
    """
    Unix time of the record.
    """
    folder = BuildFolder.of(tmp_path, IMAGE)
    make(folder, "a")
    os.utime(folder.path / "build" / "build.json", (5, 1_700_000_000.9))
    assert folder.built_s() == 1_700_000_000

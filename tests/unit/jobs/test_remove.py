"""`gear rm`: the record and the build folder, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from gear_plugin.errors import Conflict, ImageNotFound
from gear_plugin.jobs import BuildFolder
from gear_plugin.jobs.remove import remove
from gear_plugin.names import ImageId
from tests.unit.jobs.test_push import IMAGE, OTHER, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.build()
    world.push()
    return world


@pytest.mark.parametrize("name", [IMAGE, IMAGE.gear])
def test_record_and_build_go(world: World, name: ImageId) -> None:
    """
    Under either name; objects, engine and registry keep what they have.
    """
    objects = set(world.store.list())
    done = remove(name, world.catalog, world.root)
    assert (done.image, done.gear_image) == (str(IMAGE), str(IMAGE.gear))
    assert (done.record, done.build, done.objects, done.size_bytes) == (True, True, 2, 13)
    assert world.catalog.list_images() == []
    assert not BuildFolder.of(world.root, IMAGE).path.exists()
    assert not list((world.root / "build").glob(".tmp-*"))
    assert set(world.store.list()) == objects
    assert str(IMAGE.gear) in world.engine.images
    with pytest.raises(ImageNotFound, match="gear images"):
        remove(name, world.catalog, world.root)


def test_what_was_only_built_or_only_pushed(world: World) -> None:
    """
    Either is enough; so is a machine without a catalog.
    """
    world.build(OTHER)
    done = remove(OTHER, None, world.root)
    assert (done.record, done.build, done.objects) == (False, True, 0)
    done = remove(IMAGE, world.catalog, world.root / "another machine")
    assert (done.record, done.build) == (True, False)


def test_an_image_that_is_being_pushed_stays(world: World) -> None:
    """
    Record and folder, until that has ended.
    """
    folder = BuildFolder.of(world.root, IMAGE)
    with folder.in_use(), pytest.raises(Conflict, match="being built or pushed"):
        remove(IMAGE, world.catalog, world.root)
    assert folder.path.exists()
    assert len(world.catalog.list_images()) == 1

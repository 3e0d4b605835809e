"""Having an image on a node by its name, while others remove it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import ImageNotFound
from gear_plugin.jobs.index_sources import NodeSource, take_index
from gear_plugin.jobs.locate import IndexFiles, IndexSource
from gear_plugin.jobs.taking_in import take_in
from gear_plugin.layers import NodeImages
from gear_plugin.names import ImageId
from tests.unit.image.indexes import index
from tests.unit.layers.layer_damage import whole

NAME = ImageId.parse("library/nginx-gear:1.25")
EROFS, MANIFEST = index()
INDEX = Digest.of(EROFS).hex
LAYER = whole(EROFS, MANIFEST)


class Layer:
    """A place that has the index as it comes from outside."""

    name = "layer"

    def find(self, gear_image: ImageId, scratch: Path) -> IndexFiles:
        return take_index(io.BytesIO(LAYER), scratch)


@pytest.fixture
def images(tmp_path: Path) -> NodeImages:
    return NodeImages(tmp_path)


def put(images: NodeImages) -> None:
    with images.scratch() as folder:
        (folder / "layer").mkdir()
        take_index(io.BytesIO(LAYER), folder / "layer")
        images.install(folder / "layer")


def test_the_index_is_named_before_it_is_installed(images: NodeImages, tmp_path: Path) -> None:
    """
    So that its keeper is on record when it appears.
    """
    seen: list[tuple[str, list[str]]] = []

    def note(index: str) -> bool:
        seen.append((index, list(images)))
        return False

    assert take_in(images, NAME, [Layer()], note) == INDEX
    assert seen == [(INDEX, [])]
    assert list(images) == [INDEX]


def test_what_is_here_is_not_installed_again(images: NodeImages) -> None:
    """
    The keeper says so, who knows that it stays.
    """
    assert take_in(images, NAME, [Layer()], lambda _: True) == INDEX
    assert list(images) == []


def test_an_image_that_leaves_meanwhile_is_looked_for_again(
    images: NodeImages, tmp_path: Path
) -> None:
    """
    Found on the node and gone before it was noted: the next place has it.
    """
    put(images)
    noted: list[str] = []

    def note(index: str) -> bool:
        if not noted:
            images.remove(index)
        noted.append(index)
        return images.objects(index) is not None

    sources: list[IndexSource] = [NodeSource(tmp_path), Layer()]
    assert take_in(images, NAME, sources, note) == INDEX
    assert len(noted) == 2
    assert list(images) == [INDEX]


def test_an_image_that_never_stays_is_given_up(images: NodeImages, tmp_path: Path) -> None:
    """
    One line; nothing is left.
    """

    class Flickering(NodeSource):
        def find(self, gear_image: ImageId, scratch: Path) -> IndexFiles:
            put(images)
            return super().find(gear_image, scratch)

    def note(index: str) -> bool:
        images.remove(index)
        return False

    with pytest.raises(ImageNotFound, match="comes and goes on this node"):
        take_in(images, NAME, [Flickering(tmp_path)], note)
    assert [name for name in os.listdir(tmp_path / "images") if name != NAME.original.folder] == []

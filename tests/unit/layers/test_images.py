"""NodeImages, used by several threads."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from gear_plugin.image import ObjectTable
from gear_plugin.jobs.index_sources import take_index
from gear_plugin.layers import NodeImages

from .layer_damage import EROFS, whole

pytestmark = pytest.mark.root

IMAGE = Digest.of(EROFS).hex


def layer(folder: Path) -> Path:
    """An unpacked index layer."""
    folder.mkdir()
    take_index(io.BytesIO(whole()), folder)
    return folder


def test_two_that_install_one_image_do_not_take_it_from_each_other(tmp_path: Path) -> None:
    """
    Who has installed it relies on it from that moment on.
    """
    (tmp_path / "gear").mkdir()
    first, second = layer(tmp_path / "first"), layer(tmp_path / "second")
    removed: list[bool] = []

    class Slow(NodeImages):
        """One that installs the first layer in the middle of the second's install."""

        other: threading.Thread | None = None

        def objects(self, image: str) -> ObjectTable | None:
            found = super().objects(image)
            if self.other is None:
                self.other = threading.Thread(target=self.install, args=(first,))
                self.other.start()
                self.other.join(0.5)
            return found

        def remove(self, image: str) -> None:
            removed.append(self.index_file(image).exists())
            super().remove(image)

    images = Slow(tmp_path / "gear")
    assert images.install(second) == IMAGE
    assert images.other is not None
    images.other.join()
    assert removed == [False]
    assert list(images) == [IMAGE]

"""A real layer store on a real filesystem; ordinary layers only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from gear_plugin.layers import ImageKeepers, LayerStore, NodeImages
from gear_plugin.rootfs import View, is_mount, unmount


class NoViews:
    """Stands in for rootfs.Views where no Gear image is mounted."""

    def use(self, image: str, mount: Callable[[View | Path], None], /) -> None:
        raise AssertionError("no Gear image in this test")

    def release(self, image: str, is_used: Callable[[], bool], /) -> None:
        raise AssertionError("no Gear image in this test")

    def forget(self, image: str, /) -> None:
        raise AssertionError("no Gear image in this test")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Gear's main folder; whatever is still mounted below it goes at the end."""
    yield tmp_path
    for merged in tmp_path.glob("containers/*/merged"):
        if is_mount(merged):
            unmount(merged, lazy=True)


class AnyViews(Protocol):
    """All that the stores need of rootfs.Views."""

    def use(self, image: str, mount: Callable[[View | Path], None], /) -> None: ...
    def release(self, image: str, is_used: Callable[[], bool], /) -> None: ...
    def forget(self, image: str, /) -> None: ...


def layer_store(
    root: Path,
    images: NodeImages,
    views: AnyViews,
    forget_image: Callable[[str], None] = lambda _: None,
    *,
    release_s: float = 5.0,
) -> LayerStore:
    """A store with keepers of its own."""
    keepers = ImageKeepers(root, images, views, forget_image)
    return LayerStore(root, images, views, keepers, release_s=release_s)


def make_store(root: Path) -> LayerStore:
    """A store as a new process would make it."""
    return layer_store(root, NodeImages(root), NoViews())


@pytest.fixture
def store(root: Path) -> LayerStore:
    return make_store(root)

"""Layers as a hostile registry may send them, through a real unpacker and a real checker."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.layers import LayerStore
from gear_plugin.rootfs import mounts

from .layer_damage import CORPUS, EROFS, MANIFEST, corpus, ordinary, refused, taken
from .tars import reading

pytestmark = pytest.mark.root

_REFUSED = refused()
IMAGE = hashlib.sha256(EROFS).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """Everything below *folder*, with what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        text = str(path.relative_to(folder))
        if path.is_symlink():
            found[text] = f"-> {path.readlink()}"
        elif path.is_file():
            found[text] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[text] = "other"
    return found


@pytest.fixture
def host(root: Path) -> Iterator[Path]:
    """Gear's folder among files that a layer must not touch."""
    canary = root.parent / (root.name + "-canary")
    canary.mkdir()
    (canary / "file").write_bytes(b"untouched")
    (root / "file").write_bytes(b"untouched")
    yield root
    assert contents(canary) == {"file": hashlib.sha256(b"untouched").hexdigest()}


@pytest.mark.parametrize("name", _REFUSED)
def test_a_bad_layer_is_refused_and_leaves_nothing(
    host: Path, store: LayerStore, name: str
) -> None:
    """
    Its own error, one short line that names the trouble; nothing is mounted
    (the store's views would fail the test), and the disk is as it was.
    """
    data, error, reason = _REFUSED[name]
    store.create("layer", "", writable=False)
    before = contents(host)
    with pytest.raises(error, match=reason) as caught:
        store.apply("layer", reading(data))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert contents(host) == before
    assert not any(host in point.parents for point, _ in mounts())
    store.remove("layer")
    assert os.listdir(host / "containers") == []
    assert os.listdir(host / "images") == []


@pytest.mark.parametrize("name", taken())
def test_a_whole_index_layer_is_taken(host: Path, store: LayerStore, name: str) -> None:
    """
    Whatever tool packed it; overlayfs's own attributes never come from a tar.
    """
    store.create("layer", "", writable=False)
    assert store.apply("layer", reading(taken()[name])) >= len(EROFS) + len(MANIFEST.encode())
    assert store.metadata("layer")["GearIndex"] == IMAGE
    images = host / "images"
    assert sorted(os.listdir(images / IMAGE)) == ["index.erofs", "manifest", "objects"]
    assert (images / IMAGE / "index.erofs").read_bytes() == EROFS
    upper = host / "containers/layer/upper"
    for path in (upper, upper / ".gear", upper / ".gear/index.erofs"):
        assert not any(name.startswith("trusted.overlay.") for name in os.listxattr(path))
    store_names = {path.name for path in images.iterdir() if path.is_symlink()}
    assert store_names == {"library+nginx=1.25"}


@pytest.mark.parametrize("name", ordinary())
def test_what_only_looks_like_an_index_is_an_ordinary_layer(
    host: Path, store: LayerStore, name: str
) -> None:
    """
    Its files are shown as they are; nothing is ever mounted from one of them.
    """
    store.create("layer", "", writable=False)
    store.apply("layer", reading(ordinary()[name]))
    assert "GearIndex" not in store.metadata("layer")
    assert os.listdir(host / "images") == []
    assert store.get("layer") == host / "containers/layer/upper"
    store.remove("layer")
    assert os.listdir(host / "containers") == []


def test_the_corpus_is_what_the_code_makes() -> None:
    """
    The files for other readers are these very layers.
    """
    assert {path.name: path.read_bytes() for path in CORPUS.iterdir()} == corpus()

"""Manifests that a registry may send, good and bad."""

from __future__ import annotations

import pytest

from gear_plugin.errors import IndexDamaged
from gear_plugin.image import Manifest, check_index
from gear_plugin.image.manifest import MAX_HEAD_BYTES
from tests.unit.image.indexes import index
from tests.unit.image.manifest_damage import CORPUS, WHOLE, bad, corpus, good, misfits

_BAD, _MISFITS = bad(), misfits()


@pytest.mark.parametrize("name", _BAD)
def test_a_bad_manifest_is_refused(name: str) -> None:
    """
    IndexDamaged, in one short line that names the trouble.
    """
    data, reason = _BAD[name]
    with pytest.raises(IndexDamaged, match=reason) as caught:
        Manifest.decode(data)
    assert str(caught.value).startswith("manifest: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", _MISFITS)
def test_a_manifest_that_does_not_fit_its_index_is_refused(name: str) -> None:
    """
    What is whole in itself must agree with the tree too.
    """
    data, reason = _MISFITS[name]
    Manifest.decode(data)
    with pytest.raises(IndexDamaged, match=reason):
        check_index(index()[0], data)


@pytest.mark.parametrize("name", good())
def test_a_good_manifest_is_taken(name: str) -> None:
    """
    Byte for byte what writing it again gives.
    """
    data = good()[name]
    assert Manifest.decode(data).encode() == data


def test_a_head_larger_than_any_sound_one_is_refused_unread() -> None:
    """
    JSON takes fifty times its bytes as objects; the size alone is enough to refuse it.
    """
    head = b"[" * (MAX_HEAD_BYTES + 1)
    data = WHOLE[:12] + len(head).to_bytes(4, "little") + bytes(16) + head
    with pytest.raises(IndexDamaged, match=f"a head of {len(head)} bytes"):
        Manifest.decode(data)


def test_the_corpus_is_what_the_code_makes() -> None:
    """
    The files for other readers are these very manifests.
    """
    assert {path.name: path.read_bytes() for path in CORPUS.iterdir()} == corpus()

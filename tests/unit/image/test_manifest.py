"""The manifest's bytes, there and back, and what is no manifest."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gear_plugin.digest import Digest
from gear_plugin.errors import IndexDamaged, Unsupported
from gear_plugin.image import LARGE_OBJECT_BYTES, Manifest, Totals, chunk_count
from gear_plugin.names import ImageId
from tests.unit.image.indexes import index

_WHOLE = index()[1].encode()
_HEAD_AT = 32
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
_digests = st.binary(min_size=32, max_size=32).map(Digest)
_chunks = st.lists(st.binary(min_size=32, max_size=32), max_size=4).map(tuple)


@settings(max_examples=80, deadline=None)
@given(
    st.builds(
        Manifest,
        image=st.sampled_from(["nginx", "a/b:c", "localhost:5000/x:y"]).map(ImageId.parse),
        image_digest=_digests,
        platform=st.text(max_size=20),
        config=st.dictionaries(st.text(), _json, max_size=4),
        totals=st.builds(Totals, *[st.integers(0, 2**70)] * 5),
        index_digest=_digests,
        chunks=st.dictionaries(_digests, _chunks, max_size=3),
        profile=st.lists(_digests, max_size=4).map(tuple),
    )
)
def test_what_was_encoded_is_decoded(manifest: Manifest) -> None:
    """
    Every field comes back, and encoding that gives the same bytes.
    """
    data = manifest.encode()
    assert Manifest.decode(data) == manifest
    assert Manifest.decode(data).encode() == data


def test_the_order_of_keys_and_chunks_does_not_matter() -> None:
    """
    Equal manifests, equal bytes.
    """
    one, two = Digest.of(b"1"), Digest.of(b"2")
    first = index(config={"a": 1, "b": 2}, chunks={one: (), two: ()})[1]
    second = index(config={"b": 2, "a": 1}, chunks={two: (), one: ()})[1]
    assert first.encode() == second.encode()


def test_the_format_has_not_drifted() -> None:
    """
    The layout that docs/index-format.md specifies, byte by byte.
    """
    magic, version, head, large, chunks, profile, zero = struct.unpack_from("<8sIIIIII", _WHOLE)
    assert (magic, version, large, chunks, profile, zero) == (b"GEARMF\r\n", 1, 1, 18, 2, 0)
    assert len(_WHOLE) == _HEAD_AT + head + 36 + 32 * (18 + 2)
    decoded = json.loads(_WHOLE[_HEAD_AT : _HEAD_AT + head])
    assert list(decoded) == sorted(
        ["config", "image", "image_digest", "index_digest", "platform", "totals"]
    )
    assert "A=ä".encode() in _WHOLE


def test_a_newer_format_asks_for_an_upgrade() -> None:
    """
    The user learns that Gear is too old, not that the image is broken.
    """
    with pytest.raises(IndexDamaged, match="newer Gear; upgrade"):
        Manifest.decode(_WHOLE[:8] + b"\2" + _WHOLE[9:])


def _with_head(change: Any) -> bytes:
    """The manifest with its head changed, lengths made to fit."""
    size = struct.unpack_from("<I", _WHOLE, 12)[0]
    head = change(_WHOLE[_HEAD_AT : _HEAD_AT + size])
    fixed = _WHOLE[:12] + struct.pack("<I", len(head)) + _WHOLE[16:_HEAD_AT]
    return fixed + bytes(head) + _WHOLE[_HEAD_AT + size :]


def _with_json(**changes: Any) -> bytes:
    def change(head: bytes) -> bytes:
        return json.dumps(
            json.loads(head) | changes, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    return _with_head(change)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        _WHOLE[:31],
        b"x" + _WHOLE[1:],
        _WHOLE[:-1],
        _WHOLE + b"\0",
        _WHOLE[:8] + b"\0" + _WHOLE[9:],
        _WHOLE[:28] + b"\1" + _WHOLE[29:],
        _with_head(lambda head: b""),
        _with_head(lambda head: b"[]"),
        _with_head(lambda head: b"[" * 100_000),
        _with_head(lambda head: b"\xff" + head[1:]),
        _with_head(lambda head: head + b" "),
        _with_head(lambda head: head.replace(b'{"config"', b'{"config":{},"config"')),
        _with_head(lambda head: head.replace(b'"history":[]', b'"history":NaN')),
        _with_head(lambda head: head.replace(b'"history":[]', b'"history":1e999')),
        _with_head(lambda head: head.replace(b'"history":[]', b'"history":"\\ud800"')),
        _with_head(lambda head: head.replace(b'"history":[]', b'"history":' + b"9" * 5000)),
        _with_json(extra=1),
        _with_json(image=7),
        _with_json(image="UPPER"),
        _with_json(image_digest="sha512:00"),
        _with_json(index_digest=None),
        _with_json(platform=None),
        _with_json(config=[]),
        _with_json(totals={}),
        _with_json(totals=5),
        _with_json(
            totals={"files": -1, "directories": 1, "others": 1, "objects": 1, "object_bytes": 1}
        ),
    ],
)
def test_anything_else_is_damaged(data: bytes) -> None:
    """
    Exactly what `encode` writes is taken.
    """
    with pytest.raises(IndexDamaged, match="manifest: ") as caught:
        Manifest.decode(data)
    assert len(str(caught.value)) < 400


def test_flipped_bytes_are_refused_or_read() -> None:
    """
    No change of a byte raises anything but IndexDamaged.
    """
    for at in range(len(_WHOLE)):
        for flip in (1, 0x80, 0xFF):
            try:
                Manifest.decode(_WHOLE[:at] + bytes([_WHOLE[at] ^ flip]) + _WHOLE[at + 1 :])
            except IndexDamaged:
                pass


def test_a_configuration_that_is_no_json_is_unsupported() -> None:
    """
    Said when it is written, not when it is read.
    """
    with pytest.raises(Unsupported, match="no proper JSON"):
        index(config={"a": "\ud800"})[1].encode()


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (0, 0),
        (LARGE_OBJECT_BYTES - 1, 0),
        (LARGE_OBJECT_BYTES, 16),
        (LARGE_OBJECT_BYTES + 1, 17),
    ],
)
def test_only_large_objects_have_chunks(size: int, count: int) -> None:
    """
    From 16 MiB on, one digest for each MiB or part of it.
    """
    assert chunk_count(size) == count

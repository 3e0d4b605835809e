"""Whole objects of the three formats, for hypothesis; the tests then damage them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from gear_plugin.digest import Digest
from gear_plugin.image import NO_XATTRS, Kind, Manifest, Member, Totals, write_erofs
from gear_plugin.names import ImageId
from tests.fuzz.members import encode
from tests.unit.image.trees import trees

_digests = st.binary(min_size=32, max_size=32).map(Digest)
_chunks = st.lists(st.binary(min_size=32, max_size=32), max_size=4).map(tuple)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip

manifests: st.SearchStrategy[bytes] = st.builds(
    Manifest,
    image=st.sampled_from(["nginx", "a/b:c", "localhost:5000/x:y"]).map(ImageId.parse),
    image_digest=_digests,
    platform=st.text(max_size=20),
    config=st.dictionaries(st.text(), _json, max_size=4),
    totals=st.builds(Totals, *[st.integers(0, 2**70)] * 5),
    index_digest=_digests,
    chunks=st.dictionaries(_digests, _chunks, max_size=3),
    profile=st.lists(_digests, max_size=4).map(tuple),
).map(Manifest.encode)

indexes: st.SearchStrategy[bytes] = trees.map(write_erofs)

_components = st.sampled_from([b"a", b"b", b"l", b".wh.a", b".wh..wh..opq", b"\xff", b"n" * 255])
_paths = st.lists(_components, min_size=1, max_size=4).map(b"/".join)
_targets = st.sampled_from([b"a", b"/", b"..", b"../../b", b"l/l", b"/a/b", b"t" * 4095])


@st.composite
def _members(draw: st.DrawFn) -> tuple[Member, bytes]:
    kind = draw(st.sampled_from(Kind))
    data = draw(st.binary(max_size=1200)) if kind is Kind.FILE else b""
    link = b""
    if kind is Kind.SYMLINK:
        link = draw(_targets)
    elif kind is Kind.HARDLINK:
        link = draw(_paths)
    fields: dict[str, Any] = {"mode": draw(st.integers(0, 0o7777))}
    for owner in ("uid", "gid"):
        fields[owner] = draw(st.sampled_from([0, 1000, 2**32 - 2, 2**32 - 1]))
    is_device = kind in (Kind.CHAR, Kind.BLOCK)
    for part in ("major", "minor"):
        fields[part] = draw(st.sampled_from([0, 1, 0xFFF, 2**32 - 1])) if is_device else 0
    keys = st.sampled_from(
        [b"user.a", b"trusted.overlay.opaque", b"security.x", b"com.x", b"user."]
    )
    xattrs = draw(st.just(NO_XATTRS) | st.dictionaries(keys, st.binary(min_size=1), max_size=2))
    when = draw(st.sampled_from([0, -1, 1_500_000_001, 10**18, 2**63, -(2**62)]))
    return Member(draw(_paths), kind, **fields, mtime_ns=when, size=len(data), link=link,
                  xattrs=xattrs, data_offset=0), data  # fmt: skip


layers: st.SearchStrategy[bytes] = st.lists(_members(), max_size=8).map(
    lambda members: b"".join(encode(*each) for each in members) + bytes(1024)
)

WHOLE = {"manifest": manifests, "erofs": indexes, "layer": layers}

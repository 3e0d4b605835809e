from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed, ContentCorrupt, Unsupported
from gear_plugin.jobs import unpack

ZSTD = zstandard.ZstdCompressor().compress
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: b"plain " + data,
    "gzip": lambda data: gzip.compress(b"plain " + data, mtime=0),
    "two gzip members": lambda data: gzip.compress(b"plain ") + gzip.compress(data),
    "gzip with zeros after it": lambda data: gzip.compress(b"plain " + data) + bytes(700),
    "zstd": lambda data: ZSTD(b"plain " + data),
    "two zstd frames": lambda data: ZSTD(b"plain ") + ZSTD(data),
}


def plain(data: bytes, step: int = unpack.PIECE_BYTES) -> list[bytes]:
    """The pieces, from a source that gives at most *step* bytes at a time."""
    source = io.BytesIO(data)
    return list(unpack.plain(lambda count: source.read(min(count, step)), "the layer"))


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
@given(data=st.binary(max_size=3000), step=st.integers(1, 4000))
def test_every_form_gives_its_bytes(pack: Callable[[bytes], bytes], data: bytes, step: int) -> None:
    """
    However little a source gives at once.
    """
    packed = pack(data)
    assert b"".join(plain(packed, step)) == b"plain " + data
    assert unpack.is_packed(packed[: unpack.HEAD_BYTES]) is (pack is not PACKERS["plain"])


@pytest.mark.parametrize("data", [b"", b"x", b"\x1f"])
def test_what_is_shorter_than_any_mark_is_plain(data: bytes) -> None:
    """
    An empty layer is nothing, not an error.
    """
    assert b"".join(plain(data)) == data


@pytest.mark.parametrize("pack", ["gzip", "zstd"])
def test_pieces_are_small_however_well_it_was_packed(pack: str) -> None:
    """
    A kilobyte that means a gigabyte does not fill the memory.
    """
    packed = {"gzip": lambda: zlib_of(64 << 20), "zstd": lambda: ZSTD(bytes(64 << 20))}[pack]()
    assert len(packed) < 100_000
    sizes = [len(piece) for piece in plain(packed)]
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= unpack.PIECE_BYTES


def zlib_of(zeros: int) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return b"".join([packer.compress(bytes(zeros)), packer.flush()])


@pytest.mark.parametrize("cut", [5, 12, 100, -9, -1])
def test_a_gzip_that_is_cut_short_is_noticed(cut: int) -> None:
    """
    In its header, its data, or its checksum.
    """
    packed = gzip.compress(os.urandom(1000))
    with pytest.raises(ArchiveMalformed, match="the layer is cut short"):
        plain(packed[:cut])


@pytest.mark.parametrize("place", [3, 200, -6, -2])
def test_a_damaged_gzip_is_noticed(place: int) -> None:
    """
    In its header, its data, its checksum, its length.
    """
    packed = bytearray(gzip.compress(os.urandom(1000)))
    packed[place] ^= 0xFF
    with pytest.raises(ArchiveMalformed, match=r"the layer is (damaged gzip|cut short)"):
        plain(bytes(packed))


def test_what_follows_a_gzip_must_be_gzip() -> None:
    """
    Or zeros.
    """
    with pytest.raises(ArchiveMalformed, match="damaged gzip"):
        plain(gzip.compress(b"data") + b"rubbish")


def test_a_damaged_zstd_is_noticed() -> None:
    """
    By its own structure.
    """
    with pytest.raises(ArchiveMalformed, match="damaged zstd"):
        plain(ZSTD(os.urandom(1000))[:20] + bytes(1000))


@pytest.mark.parametrize(("head", "name"), [(b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz")])
def test_other_compressions_are_named(head: bytes, name: str) -> None:
    """
    docker reads these; nobody writes them any more.
    """
    assert unpack.is_packed(head)
    with pytest.raises(Unsupported, match=name):
        plain(head + bytes(100))


def test_stored_bytes_are_checked(tmp_path: Path) -> None:
    """
    Against the digest of the plain layer, if there is one.
    """
    data = os.urandom(3 << 20)
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    for digest in (None, Digest.of(data)):
        unpack.store(iter(pieces), tmp_path / "x", digest, "the layer")
        assert (tmp_path / "x").read_bytes() == data
    with pytest.raises(ContentCorrupt, match="the layer is damaged or cut short: it is not sha256"):
        unpack.store(iter(pieces[:-1]), tmp_path / "x", Digest.of(data), "the layer")

"""The structure check: nothing that Gear would not write gets through, and nothing breaks it."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gear_plugin.errors import IndexDamaged
from gear_plugin.image import Directory, Inode, Kind, read_erofs, write_erofs
from gear_plugin.image.erofs_format import INODE
from tests.unit.image import ways
from tests.unit.image.damage import (
    CORPUS,
    ROOT_NID,
    damaged,
    entries,
    patched,
    place,
    sealed,
    small_tree,
)
from tests.unit.image.trees import file, snapshot, tree_of

_DAMAGED = damaged()
_WHOLE = write_erofs(small_tree())


@pytest.mark.parametrize("name", _DAMAGED)
def test_a_damaged_index_is_refused(name: str) -> None:
    """
    Each single thing that Gear does not write is IndexDamaged, in one line.
    """
    with pytest.raises(IndexDamaged) as caught:
        ways.read(_DAMAGED[name])
    assert "\n" not in str(caught.value)


def test_the_corpus_is_what_the_code_makes() -> None:
    """
    The files for other readers are these very images, and the writer's bytes have not drifted.
    """
    expected = {f"should-fail-{name}.erofs": image for name, image in _DAMAGED.items()}
    expected["ok-small.erofs"] = _WHOLE
    assert {path.name: path.read_bytes() for path in CORPUS.glob("*.erofs")} == expected


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_any_flipped_byte_is_refused_or_read(flip: int) -> None:
    """
    With the checksum made to fit, no byte of the image can cause anything but IndexDamaged.
    """
    used = len(_WHOLE.rstrip(b"\0"))
    outcomes = {"read": 0, "refused": 0}
    for at in range(1028, used):
        image = patched(_WHOLE, at, bytes([_WHOLE[at] ^ flip]))
        try:
            tree = ways.read(image)
        except IndexDamaged:
            outcomes["refused"] += 1
        else:
            # What passes is a tree that could have been written.
            snapshot(read_erofs(write_erofs(tree)))
            outcomes["read"] += 1
    assert outcomes["refused"] > 200
    assert outcomes["read"] > 200


@pytest.mark.parametrize("size", [0, 1, 1024, 1152, 4095])
def test_any_cut_is_refused(size: int) -> None:
    """
    A short file never passes.
    """
    with pytest.raises(IndexDamaged):
        read_erofs(_WHOLE[:size])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_damage_is_refused_or_read(draw: st.DataObject) -> None:
    """
    Several changes at once, words and bytes, over more than one block.
    """
    image = bytearray(_LARGER)
    for _ in range(draw.draw(st.integers(1, 6))):
        at = draw.draw(st.integers(1028, len(image) - 8))
        new = draw.draw(st.binary(min_size=1, max_size=8))
        image[at : at + len(new)] = new
    with contextlib.suppress(IndexDamaged):
        ways.read(sealed(bytes(image)))


_LARGER = write_erofs(tree_of({b"d/%03d" % n * 20: file(b"%d" % n) for n in range(120)}))


def test_overlapping_inodes_cannot_multiply_the_work() -> None:
    """
    600 inodes, each inside the xattr of the one before: 70 kB of image would be
    20 MB of xattrs if overlaps were not counted.
    """
    value_bytes = 60_000
    tree = tree_of({b"f%03d" % n: Inode(Kind.FIFO, 0, 0, 0, 0) for n in range(600)})
    tree.root.children[b"big"] = file(b"", xattrs={b"trusted.big": b"\xaa" * value_bytes})
    image = write_erofs(tree)
    start = -(-image.index(b"\xaa" * value_bytes) // 32) * 32
    end = start + value_bytes - 100
    root = struct.unpack_from("<H", image, ROOT_NID)[0] * 32
    forged = bytearray(image)
    fifos = [entry for entry, _, name in entries(image, root) if name.startswith(b"f")]
    for number, entry in enumerate(fifos):
        at = start + 96 * number
        body = end - at - INODE.size
        forged[entry : entry + 8] = struct.pack("<Q", at // 32)
        forged[at : at + INODE.size] = INODE.pack(
            1, (body - 12) // 4 + 1, 0o010000, 0, 0, 0, 0, 0, 0, 0, 0, 1, bytes(16)
        )
        forged[at + 64 : at + 81] = bytes(12) + struct.pack("<BBH", 1, 4, body - 17) + b"x"
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(IndexDamaged, match="over another"):
        read_erofs(sealed(bytes(forged)))
    assert time.perf_counter() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 10 * len(image)
    tracemalloc.stop()


def test_a_buffer_of_any_kind_is_read_and_released() -> None:
    """
    The buffer may be closed or resized as soon as `read` is back.
    """
    buffer = bytearray(_WHOLE)
    assert snapshot(read_erofs(memoryview(_WHOLE))) == snapshot(read_erofs(buffer))
    buffer.clear()


def test_the_locator_of_the_damage_maker_finds_what_it_names() -> None:
    """
    Damage that misses its target would prove nothing.
    """
    inode, _, name_at = place(_WHOLE, b"d/x")
    assert _WHOLE[name_at : name_at + 1] == b"x"
    assert place(_WHOLE, b"d/h")[0] == place(_WHOLE, b"a")[0] != inode


@pytest.mark.parametrize("size", range(4090, 4096))
def test_a_directory_may_be_as_deep_as_a_path_is_long(size: int) -> None:
    """
    Its `.` and `..` are in no path; what the writer takes, the reader takes.
    """
    path = b"/".join([b"n" * 200] * 21)[: size - 2] + b"/d"
    tree = tree_of({path: Directory()})
    assert snapshot(ways.read(write_erofs(tree))) == snapshot(tree)

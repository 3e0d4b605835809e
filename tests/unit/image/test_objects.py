"""The object table over memory and over a mapped file."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gear_plugin.digest import Digest
from gear_plugin.errors import IndexDamaged
from gear_plugin.image import ObjectTable, write_erofs
from gear_plugin.image.erofs_reader import scan
from tests.unit.image.trees import file, tree_of


@given(st.dictionaries(st.binary(min_size=32, max_size=32).map(Digest), st.integers(1, 2**43)))
def test_it_is_the_mapping_it_was_built_from(sizes: dict[Digest, int]) -> None:
    """
    Every object is found with its size, in order, and nothing else is.
    """
    table = ObjectTable(ObjectTable.build({digest.raw: size for digest, size in sizes.items()}))
    assert list(table) == sorted(sizes.items())
    assert (len(table), table.total_bytes) == (len(sizes), sum(sizes.values()))
    for digest, size in sizes.items():
        assert table.size(digest) == size
        neighbour = Digest(digest.raw[:-1] + bytes([digest.raw[-1] ^ 1]))
        assert (neighbour in table) is (neighbour in sizes)


def test_it_reads_from_a_mapped_file(tmp_path: Path) -> None:
    """
    Nothing is loaded: a mapping serves as well as bytes.
    """
    path = tmp_path / "objects"
    path.write_bytes(ObjectTable.build({Digest.of(b"1").raw: 1, Digest.of(b"22").raw: 2}))
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        table = ObjectTable(mapped)
        assert table.size(Digest.of(b"22")) == 2
        assert Digest.of(b"333") not in table
        assert "not a digest" not in table


def test_one_content_is_listed_once_and_has_one_size() -> None:
    """
    Two files of one digest share a record; two sizes for it cannot both be true.
    """
    one, same, other = file(b"x"), file(b"x"), file(b"x", xattrs={b"user.a": b"b"})
    found = scan(write_erofs(tree_of({b"a": one, b"b": same, b"e": file(b"")})))
    assert found.sizes == {Digest.of(b"x").raw: 1}
    other.size = 5
    with pytest.raises(IndexDamaged, match="different size"):
        scan(write_erofs(tree_of({b"a": one, b"b": other})))


def test_a_cut_table_is_refused() -> None:
    """
    Half a record is damage.
    """
    with pytest.raises(IndexDamaged, match="whole records"):
        ObjectTable(bytes(41))

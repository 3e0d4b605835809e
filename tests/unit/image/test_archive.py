"""The tar scanner against Python's tarfile, and against broken tars."""

from __future__ import annotations

import io
import struct
import tarfile
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gear_plugin.errors import ArchiveMalformed, GearError, Unsupported
from gear_plugin.image import Kind, TarReader
from gear_plugin.image.archive import MAX_EXTENSION_BYTES
from tests.unit.image.tars import Dribble, info, scan, tar

_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHAR,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.DIRTYPE: Kind.DIR,
    tarfile.FIFOTYPE: Kind.FIFO,
}
_component = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60
).filter(lambda text: text not in (".", ".."))
_path = st.lists(_component, min_size=1, max_size=6).map("/".join)


@st.composite
def _members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    kind = draw(st.sampled_from(list(_KINDS)))
    found = info(
        draw(_path),
        type=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**21 - 1)),
        gid=draw(st.integers(0, 2**21 - 1)),
        mtime=draw(st.integers(0, 2**33 - 1)),
    )
    if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        found.linkname = draw(_path)
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        found.devmajor, found.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 2**20))
    return found, draw(st.binary(max_size=1500)) if _KINDS[kind] is Kind.FILE else b""


@settings(max_examples=60, deadline=None)
@given(st.lists(_members(), max_size=5), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_reads_what_tarfile_reads(
    members: list[tuple[tarfile.TarInfo, bytes]], tar_format: int
) -> None:
    """
    Every field and every byte is what Python's tarfile makes of it, on a file and on a pipe.
    """
    data = tar(*members, format=tar_format)
    expected = []
    with tarfile.open(fileobj=io.BytesIO(data)) as oracle:
        for entry in oracle:
            kind = _KINDS[entry.type]
            device = (entry.devmajor, entry.devminor)
            expected.append(
                {
                    "name": entry.name.encode(),
                    "kind": kind,
                    "mode": entry.mode,
                    "owner": (entry.uid, entry.gid),
                    "mtime_ns": entry.mtime * 10**9,
                    "size": entry.size,
                    "link": entry.linkname.encode(),
                    "device": device if kind in (Kind.CHAR, Kind.BLOCK) else (0, 0),
                    "data_offset": entry.offset_data,
                    "data": data[entry.offset_data : entry.offset_data + entry.size],
                }
            )
    for reader in (
        TarReader(io.BytesIO(data), seekable=True),
        TarReader(Dribble(data), seekable=False),
    ):
        assert [_told(reader, member) for member in reader] == expected


def _told(reader: TarReader, member: Any) -> dict[str, Any]:
    return {
        "name": member.name,
        "kind": member.kind,
        "mode": member.mode,
        "owner": (member.uid, member.gid),
        "mtime_ns": member.mtime_ns,
        "size": member.size,
        "link": member.link,
        "device": (member.major, member.minor),
        "data_offset": member.data_offset,
        "data": reader.read_data(10**6),
    }


@pytest.mark.parametrize("seekable", [True, False])
def test_data_left_unread_is_skipped(seekable: bool) -> None:
    """
    A caller reads as much of a member as it likes; the next one is found all the same.
    """
    data = tar((info("a"), b"x" * 5000), (info("b"), b"yz"))
    reader = TarReader(io.BytesIO(data), seekable=seekable)
    members = iter(reader)
    next(members)
    assert reader.read_data(3) == b"xxx"
    assert next(members).name == b"b"
    assert (reader.read_data(1), reader.read_data(9), reader.read_data(9)) == (b"y", b"z", b"")
    assert next(members, None) is None


def test_drain_reads_all_that_follows_the_end_marker() -> None:
    """
    Docker hashes the stream to its last byte, padding included.
    """
    source = io.BytesIO(tar(info("a")) + b"trailing")
    reader = TarReader(source, seekable=False)
    assert [member.name for member in reader] == [b"a"]
    assert reader.drain() == tarfile.RECORDSIZE - 2 * 512 + len(b"trailing")
    assert source.read() == b""


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("./", b""),
        (".", b""),
        ("./usr/bin/", b"usr/bin"),
        ("/etc//passwd", b"etc/passwd"),
        ("a/./.b/..c", b"a/.b/..c"),
    ],
)
def test_names_are_normalised(name: str, clean: bytes) -> None:
    """
    A name is relative, without empty and `.` components; the root is the empty name.
    """
    assert scan(tar(info(name, type=tarfile.DIRTYPE)))[0].name == clean


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.LNKTYPE])
def test_dot_dot_is_refused_in_names_and_hard_links(kind: bytes) -> None:
    """
    Nothing in a tar can point out of its tree.
    """
    fields = {"linkname": "x/../../y"} if kind == tarfile.LNKTYPE else {}
    with pytest.raises(ArchiveMalformed, match=r"'\.\.'"):
        scan(tar(info("a" if fields else "a/../../b", type=kind, **fields)))


def test_pax_xattrs_are_bytes_and_empty_ones_are_dropped() -> None:
    """
    A value may hold newlines, `=` and any byte; an empty one deletes the record, as in Docker.
    """
    capability = bytes([1, 0, 0, 2, 0, 4, 0, 10, 61, 255])
    record = _pax((b"SCHILY.xattr.security.capability", capability), (b"SCHILY.xattr.user.no", b""))
    assert scan(_extended(record))[0].xattrs == {b"security.capability": capability}


def test_global_headers_are_passed_over_as_docker_does() -> None:
    """
    moby pkg/archive: "PAX Global Extended Headers found and ignored"; local ones count.
    """
    data = tar(
        info("a"),
        info("b", pax_headers={"mtime": "5.25"}),
        info("c"),
        format=tarfile.PAX_FORMAT,
        pax_headers={"mtime": "7", "comment": "x"},
    )
    assert [member.mtime_ns for member in scan(data)] == [0, 5_250_000_000, 0]


@pytest.mark.parametrize(
    ("text", "mtime_ns"),
    [
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"12.1234567899", 12_123_456_789),
        (b"3.", 3_000_000_000),
    ],
)
def test_pax_times_keep_their_nanoseconds(text: bytes, mtime_ns: int) -> None:
    """
    Sub-second and negative times are exact; digits past the ninth are dropped.
    """
    assert scan(_extended(_pax((b"mtime", text))))[0].mtime_ns == mtime_ns


def test_numbers_in_base_256_are_read() -> None:
    """
    GNU tar writes what octal cannot hold in base 256, negative times included.
    """
    found = scan(tar(info("a", uid=2**32 - 1, mtime=-3), format=tarfile.GNU_FORMAT))[0]
    assert (found.uid, found.mtime_ns) == (2**32 - 1, -3 * 10**9)


def test_an_old_directory_is_known_by_its_slash() -> None:
    """
    Before ustar a directory was a file whose name ends in a slash.
    """
    header = bytearray(tar((info("d", type=tarfile.AREGTYPE), b"x" * 700), info("next")))
    header[1:2] = b"/"
    found = scan(_resummed(header))
    assert [(member.name, member.kind, member.size) for member in found] == [
        (b"d", Kind.DIR, 0),
        (b"next", Kind.FILE, 0),
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends too soon"),
        (b"\1" * 100, "ends too soon"),
        (tar((info("a"), b"x"))[:1024], "ends too soon"),
        (tar((info("a"), b"x" * 2000))[:1500], "ends too soon"),
        (tar(info("a"))[:512], "ends too soon"),
        (b"\1" + tar(info("a"))[1:], "checksum"),
        (b"not a tar at all" * 64, "(not a number|checksum)"),
    ],
    ids=["empty", "short", "no-end-marker", "mid-data", "header-only", "checksum", "text"],
)
@pytest.mark.parametrize("seekable", [True, False])
def test_whatever_is_no_whole_tar_is_malformed(data: bytes, reason: str, seekable: bool) -> None:
    """
    A retried request with an empty body, or a cut stream, never passes for a layer.
    """
    with pytest.raises(ArchiveMalformed, match=reason):
        scan(data, seekable=seekable)


@pytest.mark.parametrize(
    "records",
    [
        b"9999 path=x\n",
        b"10 nokey \n",
        b"xx path=a\n",
        b"3 =\n",
        b"12 mtime=1e3\n",
        b"12 mtime=abc\n",
        b"13 size=-100\n",
        b"10 size=x\n",
    ],
)
def test_malformed_pax_records_are_refused(records: bytes) -> None:
    """
    Lengths must fit, keys must be there and numbers must be numbers.
    """
    with pytest.raises(ArchiveMalformed, match="PAX"):
        scan(_extended(records))


@pytest.mark.parametrize("text", [b"0000_17\0", b"   -17\0\0", b"+17\0", b"0o17\0", b"000\00018"])
def test_numbers_are_octal_digits_and_nothing_else(text: bytes) -> None:
    """
    Python's `int` takes more; Go, with which docker reads, does not.
    """
    header = bytearray(tar(info("a")))
    header[108:116] = text.ljust(8, b"\0")
    if text == b"000\00018":
        assert scan(_resummed(header))[0].uid == 0  # text ends at its first zero byte
    else:
        with pytest.raises(ArchiveMalformed, match="not a number"):
            scan(_resummed(header))


@pytest.mark.parametrize("field", [b"\xff" * 8, b"\x80\0\0\1\0\0\0\0"])
def test_a_device_number_out_of_range_is_malformed(field: bytes) -> None:
    """
    Negative, or more than 32 bits: no index and no mknod could hold it.
    """
    header = bytearray(tar(info("d", type=tarfile.CHRTYPE)))
    header[329:337] = field
    with pytest.raises(ArchiveMalformed, match="device number out of range: b'd'"):
        scan(_resummed(header))


def test_messages_stay_short_whatever_a_name_holds() -> None:
    """
    A name may have a megabyte; the line for the user has not.
    """
    for records in (((b"path", b"n/" * 50_000 + b".."),), ((b"path", b"\xff" * 90_000 + b"\0"),)):
        with pytest.raises(ArchiveMalformed) as caught:
            scan(_extended(_pax(*records)))
        assert len(str(caught.value)) < 600
    link = tar(info("l", type=tarfile.SYMTYPE, linkname="t" * 4096))
    with pytest.raises(ArchiveMalformed, match="longer than Linux allows"):
        scan(link)


def test_a_pax_key_holds_no_zero_byte() -> None:
    """
    An xattr of that name could be given to no file.
    """
    with pytest.raises(ArchiveMalformed, match="proper key"):
        scan(_extended(_pax((b"SCHILY.xattr.user.a\0b", b"1"))))


def test_global_headers_cannot_pile_up() -> None:
    """
    Each may bring a megabyte; none of it is kept.
    """
    records = _pax(*((b"comment.%d" % n, b"x" * 1000) for n in range(900)))
    header = info("g", type=b"g", size=len(records)).tobuf() + records
    data = (header + bytes(-len(records) % 512)) * 40 + tar(info("a"))
    tracemalloc.start()
    assert [member.name for member in scan(data)] == [b"a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(records)


def test_a_huge_extension_header_is_refused_unread() -> None:
    """
    A header cannot make the scanner allocate what it announces.
    """
    header = bytearray(info("x", type=b"x", size=MAX_EXTENSION_BYTES + 1).tobuf())
    with pytest.raises(ArchiveMalformed, match="extension header of"):
        scan(bytes(header))


@pytest.mark.parametrize(
    "data",
    [
        info("s", type=tarfile.GNUTYPE_SPARSE).tobuf() + bytes(1024),
        tar(info("p", pax_headers={"GNU.sparse.major": "1"}), format=tarfile.PAX_FORMAT),
        info("v", type=b"V").tobuf() + bytes(1024),
    ],
    ids=["gnu-sparse", "pax-sparse", "volume-header"],
)
def test_what_gear_cannot_carry_is_said_to_be_unsupported(data: bytes) -> None:
    """
    A sparse file read as a plain one would be silently wrong.
    """
    with pytest.raises(Unsupported):
        scan(data)


def test_an_extension_without_a_member_is_malformed() -> None:
    """
    The end marker right after an extension header means that something was lost.
    """
    data = info("x" * 200).tobuf(tarfile.GNU_FORMAT)[:1024] + bytes(1024)
    with pytest.raises(ArchiveMalformed, match="no member after it"):
        scan(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_tars_give_only_expected_errors(draw: st.DataObject) -> None:
    """
    Any flip or cut ends in members or in a GearError.
    """
    data = bytearray(
        tar(
            (info("a" * 150, pax_headers={"mtime": "1.5"}), b"x" * 700),
            info("b", type=tarfile.SYMTYPE, linkname="c"),
            format=tarfile.PAX_FORMAT,
        )[: 7 * 1024]
    )
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data) - 1))
        data[at] = draw.draw(st.integers(0, 255))
        if draw.draw(st.booleans()):
            _resum(data, at // 512 * 512)
    del data[draw.draw(st.integers(0, len(data))) :]
    try:
        scan(bytes(data))
    except GearError:
        pass


def _pax(*records: tuple[bytes, bytes]) -> bytes:
    out = b""
    for key, value in records:
        body = b" " + key + b"=" + value + b"\n"
        size = len(body) + 1
        while len(str(size)) + len(body) != size:
            size += 1
        out += b"%d" % size + body
    return out


def _extended(records: bytes) -> bytes:
    """A tar of one empty file with these raw PAX records."""
    header = info("x", type=b"x", size=len(records)).tobuf()
    return header + records + bytes(-len(records) % 512) + tar(info("file"))


def _resum(data: bytearray, at: int) -> None:
    data[at + 148 : at + 156] = b" " * 8
    struct.pack_into("8s", data, at + 148, b"%06o\0 " % sum(data[at : at + 512]))


def _resummed(data: bytearray) -> bytes:
    _resum(data, 0)
    return bytes(data)

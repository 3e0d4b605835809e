"""
Layer tars: index layers that are taken, layers that only look like one, and
everything that must be refused.

`python -m tests.unit.layers.layer_damage` writes them to tests/corpus/layer/;
a test holds both together.
"""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed, GearError, IndexDamaged, Unsupported
from gear_plugin.image import INDEX_NAME, MANIFEST_NAME, Manifest, write_layer
from tests.unit.image import damage, manifest_damage
from tests.unit.image.indexes import index

CORPUS = Path(__file__).parents[2] / "corpus" / "layer"

EROFS, MANIFEST = index()
FOLDER = {"name": ".gear", "type": b"5", "mode": 0o755}
INDEX = {"name": INDEX_NAME, "data": EROFS}
DESCRIPTION = {"name": MANIFEST_NAME, "data": MANIFEST.encode()}
Entry = dict[str, Any]


def whole(erofs: bytes = EROFS, manifest: Manifest = MANIFEST) -> bytes:
    """An index layer as Gear writes it."""
    out = io.BytesIO()
    write_layer(erofs, manifest.encode(), out)
    return out.getvalue()


def blocks(*entries: Entry | bytes, end: bytes = bytes(1024)) -> bytes:
    """A tar without padding: TarInfo fields by name with `data`, or raw bytes."""
    out = []
    for entry in entries:
        if isinstance(entry, bytes):
            out.append(entry)
            continue
        fields = dict(entry)
        data, headers = fields.pop("data", b""), fields.pop("pax", {})
        info = tarfile.TarInfo(fields.pop("name"))
        info.size, info.mode, info.pax_headers = len(data), 0o644, headers
        for key, value in fields.items():
            setattr(info, key, value)
        tar_format: Any = tarfile.PAX_FORMAT if headers else tarfile.GNU_FORMAT
        out.append(
            info.tobuf(tar_format, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)
        )
    return b"".join(out) + end


def _with_header(entry: Entry, at: int, field: bytes) -> bytes:
    """The one header of *entry* with a field replaced and the checksum made to fit."""
    header = bytearray(blocks({**entry, "data": b""}, end=b""))
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _size(size: int | bytes) -> bytes:
    """The start of an index layer whose index claims *size* bytes."""
    field = size if isinstance(size, bytes) else b"\x80" + size.to_bytes(11, "big")
    return blocks(FOLDER, _with_header(INDEX, 124, field), EROFS, end=b"")


def _record(key: bytes, value: bytes) -> bytes:
    """A PAX header with one record, as raw as it comes."""
    body = b" " + key + b"=" + value + b"\n"
    size = len(body) + 1
    while len(str(size)) + len(body) != size:
        size += 1
    return blocks({"name": "x", "type": b"x", "data": b"%d" % size + body}, end=b"")


def _for(erofs: bytes) -> bytes:
    """The index layer of a damaged *erofs*, its manifest naming just that."""
    return whole(erofs, index(index_digest=Digest.of(erofs))[1])


def _link(kind: bytes, target: str, name: str = "x") -> Entry:
    return {"name": name, "type": kind, "linkname": target}


def taken() -> dict[str, bytes]:
    """Index layers that are installed."""
    opaque = {"SCHILY.xattr.trusted.overlay.opaque": "y"}
    redirect = {"SCHILY.xattr.trusted.overlay.redirect": "/abc/def"}
    return {
        "as-written": whole(),
        "as-gnu-tar-writes-it": blocks(FOLDER, INDEX, DESCRIPTION, end=bytes(10240)),
        "in-another-order": blocks(DESCRIPTION, INDEX, FOLDER),
        "without-the-folder": blocks(INDEX, DESCRIPTION),
        "named-twice-the-last-one-counts": blocks(
            FOLDER, {"name": INDEX_NAME, "data": b"first"}, DESCRIPTION, INDEX
        ),
        "with-whiteouts-of-nothing": blocks(
            {"name": ".wh..gear"}, {"name": ".gear/.wh.index.erofs"}, FOLDER, INDEX, DESCRIPTION,
            {"name": ".wh..wh..opq"},
        ),
        "with-a-device-0-0": blocks(
            FOLDER, INDEX, DESCRIPTION, {"name": ".gear/x", "type": b"3"}
        ),
        "with-overlay-xattrs": blocks(
            {**FOLDER, "pax": opaque}, {**INDEX, "pax": redirect}, DESCRIPTION
        ),
        "with-odd-owners-and-modes": blocks(
            {**FOLDER, "mode": 0o1777, "uid": 1000}, {**INDEX, "mode": 0o6777, "uid": 2**32 - 1},
            {**DESCRIPTION, "mode": 0},
        ),
        "with-a-global-header": blocks(
            {"name": "g", "type": b"g", "data": b"18 path=somewhere\n"},
            FOLDER, INDEX, DESCRIPTION,
        ),
        "with-bytes-after-the-end": whole() + b"anything" * 100,
    }  # fmt: skip


def ordinary() -> dict[str, bytes]:
    """Layers that are no index, whatever they hold: plain files that nothing is mounted from."""
    return {
        "gear-a-file": blocks({"name": ".gear", "data": b"x"}),
        "gear-a-symlink": blocks(
            {"name": "real", "type": b"5", "mode": 0o755}, _link(b"2", "real", ".gear"),
            INDEX, DESCRIPTION,
        ),
        "gear-a-device-0-0": blocks({"name": ".gear", "type": b"3", "devmajor": 0, "devminor": 0}),
        "gear-without-an-index": blocks(FOLDER, DESCRIPTION),
        "gear-empty": blocks(FOLDER),
        "exported-from-a-gear-container": blocks(
            FOLDER, INDEX, DESCRIPTION, {"name": "etc", "type": b"5"}
        ),
        "gear-inside-a-folder": blocks(
            {**INDEX, "name": "a/" + INDEX_NAME}, {**DESCRIPTION, "name": "a/" + MANIFEST_NAME}
        ),
        "1500-folders-deep": blocks(_record(b"path", b"d/" * 1500 + b"f"), {"name": "f"}),
        "empty-archive": bytes(1024),
    }  # fmt: skip


def refused() -> dict[str, tuple[bytes, type[GearError], str]]:
    """Layers that are refused: the error's class, and what its message says (a regex)."""
    archive, damaged = ArchiveMalformed, IndexDamaged
    only, soon = "and nothing else", "ends too soon"
    data = whole()
    broken = damage.damaged()
    indexes = {
        # A few of tests/corpus/index, through the whole way of a layer.
        f"index-{name}": (_for(broken[name]), damaged, reason)
        for name, reason in {
            "cycle": "two names|link count",
            "redirect-elsewhere": "redirect to no object",
            "overlay-opaque": "steer overlayfs",
            "whiteout": "overlayfs whiteout",
            "name-with-slash": "name in a directory",
            "unknown-feature": "a newer Gear made it",
            "directory-size-huge": "out of bounds",
        }.items()
    }
    bad = manifest_damage.bad()
    some = {name: bad[name] for name in ("nested-9000-deep", "profile-claims-137-gb", "newer")}
    manifests = {
        f"manifest-{name}": (blocks(FOLDER, INDEX, {**DESCRIPTION, "data": data}), damaged, reason)
        for name, (data, reason) in (some | manifest_damage.misfits()).items()
    }
    return {
        # damaged and cut off
        "nothing": (b"", archive, soon),
        "half-a-header": (data[:300], archive, soon),
        "cut-in-the-index": (data[:3000], archive, soon),
        "cut-before-the-end-marker": (data[:-1024], archive, soon),
        "garbage": (b"garbage " * 1000, archive, "not a number|checksum"),
        "compressed": (b"\x1f\x8b\x08\0" + bytes(range(256)) * 8, archive, "not a number|checksum"),
        "header-checksum": (b"\1" + data[1:], archive, "checksum"),
        "index-changed": (
            data.replace(EROFS, EROFS[:-1] + b"\1"), damaged, "not the one that the manifest names"
        ),
        "index-empty": (blocks(FOLDER, {**INDEX, "data": b""}, DESCRIPTION), damaged, "0 bytes"),
        "manifest-empty": (blocks(FOLDER, INDEX, {**DESCRIPTION, "data": b""}), damaged, "0 bytes"),
        # huge
        "index-claims-2-to-the-60-bytes": (_size(2**60), archive, soon),
        "index-claims-2-to-the-70-bytes": (_size(2**70), archive, "out of range"),
        "index-claims-8-gib": (_size(b"77777777777\0"), archive, soon),
        "manifest-claims-512-mib": (
            blocks(FOLDER, INDEX, _with_header(DESCRIPTION, 124, b"04000000000\0"), end=b""),
            archive, soon,
        ),
        "negative-size": (_size(b"\xff" * 12), archive, "out of range"),
        "negative-size-in-octal": (_size(b"-0000000005\0"), archive, "not a number"),
        "size-with-underscores": (_size(b"00000_00100\0"), archive, "not a number"),
        "pax-size-negative": (
            blocks(_record(b"size", b"-1"), INDEX), archive, "not a number"
        ),
        "pax-size-of-20-digits": (
            blocks(_record(b"size", b"9" * 20), INDEX), archive, "out of range"
        ),
        "extension-of-8-gib": (
            _with_header({"name": "x", "type": b"x"}, 124, b"77777777777\0"), archive,
            "extension header of",
        ),
        "extension-of-negative-size": (
            _with_header({"name": "x", "type": b"L"}, 124, b"\xff" * 12), archive,
            "extension header of",
        ),
        "name-of-5000-bytes": (
            blocks({"name": "n" * 5000}), archive, "File name too long"
        ),
        "time-beyond-64-bits": (
            blocks(_record(b"mtime", b"9" * 19), INDEX), archive, "time out of range"
        ),
        # hostile names and links
        "name-leads-out": (blocks({"name": "../../etc/x", "data": b"x"}), archive, r"'\.\.'"),
        "name-with-zero-byte": (blocks(_record(b"path", b"a\0b"), INDEX), archive, "zero byte"),
        "root-a-file": (blocks({"name": "./", "data": b"x"}), archive, "root of the layer"),
        "root-a-symlink": (blocks(_link(b"2", "/etc", "/")), archive, "root of the layer"),
        "hard-link-leads-out": (blocks(_link(b"1", "../../etc/passwd")), archive, r"'\.\.'"),
        "hard-link-absolute": (blocks(_link(b"1", "/etc/passwd")), archive, "not in this layer"),
        "hard-link-to-itself-replaced": (
            blocks({"name": "d/f"}, _link(b"2", "d", "l"), _link(b"1", "l/f", "d/f")), archive,
            "not in this layer",
        ),
        "hard-link-to-a-folder": (
            blocks({"name": "d", "type": b"5"}, _link(b"1", "d")), archive, "to a directory"
        ),
        "symlink-loop-on-the-way": (
            blocks(_link(b"2", "b", "a"), _link(b"2", "a", "b"), {"name": "a/x"}), archive,
            "unpacking b'a/x'",
        ),
        "symlink-to-nothing": (blocks(_link(b"2", "")), archive, "without a proper target"),
        "symlink-with-zero-byte": (
            blocks(_record(b"linkpath", b"a\0b"), _link(b"2", "a")), archive, "proper target"
        ),
        "symlink-of-5000-bytes": (
            blocks({**_link(b"2", "t" * 5000)}), archive, "longer than Linux allows"
        ),
        "whiteout-of-nothing": (blocks({"name": "a/.wh."}), archive, "names no file"),
        "whiteout-of-its-folder": (blocks({"name": "a/.wh..."}), archive, "names no file"),
        "device-beyond-linux": (
            blocks({"name": "d", "type": b"3", "devmajor": 0o7777777, "devminor": 1}), Unsupported,
            "no such device",
        ),
        "device-negative": (
            blocks(_with_header({"name": "d", "type": b"3"}, 329, b"\xff" * 8)), archive,
            "device number out of range",
        ),
        # tricks with the format
        "gnu-sparse": (blocks({"name": "s", "type": b"S"}), Unsupported, "sparse"),
        "pax-sparse": (
            blocks({**INDEX, "pax": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}}),
            Unsupported, "sparse",
        ),
        "second-volume": (blocks({"name": "m", "type": b"M"}), Unsupported, "member type b'M'"),
        "unknown-type": (blocks({"name": "z", "type": b"Z"}), Unsupported, "member type b'Z'"),
        "pax-length-too-large": (
            blocks({"name": "x", "type": b"x", "data": b"999 path=x\n"}, INDEX), archive, "PAX"
        ),
        "pax-key-with-zero-byte": (
            blocks(_record(b"SCHILY.xattr.user.a\0b", b"1"), INDEX), archive, "PAX"
        ),
        "pax-without-member": (blocks(_record(b"path", b"a")), archive, "no member after it"),
        # an index, but not quite
        "index-a-symlink": (
            blocks(FOLDER, _link(b"2", "/etc/passwd", INDEX_NAME), DESCRIPTION), damaged, only
        ),
        "index-a-device": (
            blocks(FOLDER, {"name": INDEX_NAME, "type": b"4", "devmajor": 7}, DESCRIPTION),
            damaged, only,
        ),
        "index-a-folder": (
            blocks(FOLDER, {"name": INDEX_NAME, "type": b"5", "mode": 0o755}, DESCRIPTION),
            damaged, only,
        ),
        "index-and-manifest-one-file": (
            blocks(FOLDER, INDEX, _link(b"1", INDEX_NAME, MANIFEST_NAME)), damaged, "this is none"
        ),
        "manifest-missing": (blocks(FOLDER, INDEX), damaged, only),
        "manifest-a-symlink": (
            blocks(FOLDER, INDEX, _link(b"2", "index.erofs", MANIFEST_NAME)), damaged, only
        ),
        "manifest-a-fifo": (
            blocks(FOLDER, INDEX, {"name": MANIFEST_NAME, "type": b"6"}), damaged, only
        ),
        "a-file-more": (
            blocks(FOLDER, INDEX, DESCRIPTION, {"name": ".gear/x"}), damaged, only
        ),
        "a-symlink-more": (
            blocks(FOLDER, INDEX, DESCRIPTION, _link(b"2", "/etc", ".gear/x")), damaged, only
        ),
        "a-device-more": (
            blocks(FOLDER, INDEX, DESCRIPTION, {"name": ".gear/x", "type": b"3", "devmajor": 1}),
            damaged, only,
        ),
        "a-second-gear-inside": (
            blocks(FOLDER, INDEX, DESCRIPTION, {**INDEX, "name": ".gear/" + INDEX_NAME}), damaged,
            only,
        ),
        "index-with-another-checksum": (
            whole(damage.sealed(EROFS[: damage.UUID] + bytes(16) + EROFS[damage.UUID + 16 :])),
            damaged, "not the one that the manifest names",
        ),
        "index-claims-2-to-the-63-inodes": (
            _for(damage.patched(EROFS, damage.INODES, struct.pack("<Q", 2**63))), damaged,
            "inodes found",
        ),
        **indexes,
        **manifests,
    }  # fmt: skip


def corpus() -> dict[str, bytes]:
    """Every file of the corpus."""
    return {
        **{f"ok-{name}.tar": data for name, data in taken().items()},
        **{f"plain-{name}.tar": data for name, data in ordinary().items()},
        **{f"should-fail-{name}.tar": data for name, (data, _, _) in refused().items()},
    }


def main() -> None:
    """Write the corpus anew."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    for old in CORPUS.iterdir():
        old.unlink()
    for name, data in corpus().items():
        (CORPUS / name).write_bytes(data)


if __name__ == "__main__":
    main()

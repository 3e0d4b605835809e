"""
Layers that no program in a container could make, written byte by byte.

Fractions of seconds, times far from now, ACLs, attributes, owners beyond
octal, names in every form that tar has for them, paths of thousands of bytes,
missing and late parents, links through links, whiteouts of all kinds.  `stack`
puts them on an image; an engine applies them as it does any other.  Sources:
as in `gear_plugin.image.archive`, which shares no code with this.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.engine.engine import Engine

BLOCK = 512
ODD = b"odd/tar/"
T = 1_600_000_000
LONGEST = 3_800
"""
overlay2 reaches into a layer through its own folder, and fails when that
makes a path longer than 4,095 bytes; Gear's limit is 4,095 (tests/unit).
"""

FILE, OLD_FILE, LINK, SYMLINK, CHAR, DIR, FIFO = b"0", b"\0", b"1", b"2", b"3", b"5", b"6"


def entry(
    name: bytes,
    kind: bytes = FILE,
    data: bytes = b"",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = T,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    pax: Mapping[bytes, bytes] | None = None,
    gnu: bool = False,
) -> bytes:
    """
    One member: its header, what comes before that, and its data.

    Names too long for the header go into PAX records, or GNU's `L` and `K`;
    numbers too large into base 256.
    """
    before = b""
    records = dict(pax or {})
    for key, flag, value in ((b"path", b"L", name), (b"linkpath", b"K", link)):
        if len(value) > 100 and gnu:
            before += entry(b"././@LongLink", flag, value + b"\0")
        elif len(value) > 100:
            records.setdefault(key, value)
    if records:
        before += entry(b"PaxHeaders/x", b"x", pax_records(records))
    header = bytearray(BLOCK)
    header[0 : len(name[:100])] = name[:100]
    header[100:108] = number(mode, 8)
    header[108:116] = number(uid, 8)
    header[116:124] = number(gid, 8)
    header[124:136] = number(len(data), 12)
    header[136:148] = number(mtime, 12)
    header[156:157] = kind
    header[157 : 157 + len(link[:100])] = link[:100]
    header[257:265] = b"ustar  \0" if gnu else b"ustar\x0000"
    header[329:337] = number(device[0], 8)
    header[337:345] = number(device[1], 8)
    header[345 : 345 + len(prefix)] = prefix
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return before + bytes(header) + data + bytes(-len(data) % BLOCK)


def number(value: int, width: int) -> bytes:
    """Octal if it fits, else base 256."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    raw = bytearray(value.to_bytes(width, "big", signed=True))
    raw[0] |= 0x80
    return bytes(raw)


def pax_records(records: Mapping[bytes, bytes]) -> bytes:
    """PAX records, whose lengths count themselves."""
    out = b""
    for key, value in records.items():
        size = len(key) + len(value) + 3
        while len(str(size)) + len(key) + len(value) + 3 != size:
            size = len(str(size)) + len(key) + len(value) + 3
        out += b"%d %s=%s\n" % (size, key, value)
    return out


def folder(name: bytes, **fields: object) -> bytes:
    """A directory."""
    return entry(name + b"/", DIR, **{"mode": 0o755, **fields})  # type: ignore[arg-type]


def symlink(name: bytes, to: bytes, **fields: object) -> bytes:
    """A symbolic link."""
    return entry(name, SYMLINK, link=to, **{"mode": 0o777, **fields})  # type: ignore[arg-type]


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as its xattr: tag, permissions, id (linux/posix_acl_xattr.h)."""
    out = (2).to_bytes(4, "little")
    for tag, permissions, who in entries:
        out += tag.to_bytes(2, "little") + permissions.to_bytes(2, "little")
        out += (who & 0xFFFFFFFF).to_bytes(4, "little")
    return out


def xattr(**values: bytes) -> dict[bytes, bytes]:
    """PAX records of attributes; `__` in a name stands for a dot."""
    return {
        b"SCHILY.xattr." + name.replace("__", ".").encode(): value for name, value in values.items()
    }


NOBODY_READS = acl((1, 6, -1), (2, 4, 1000), (4, 4, -1), (0x10, 4, -1), (0x20, 0, -1))
"""user::rw-, user:1000:r--, group::r--, mask::r--, other::---"""
# VFS_CAP_REVISION_3, for the root of a user namespace (linux/capability.h).
NAMESPACED = b"\x01\x00\x00\x03" + (1 << 10).to_bytes(4, "little") + bytes(12) + b"\xe8\x03\0\0"


def lower() -> Iterator[bytes]:
    """The lower of the two layers."""
    # What `git archive` starts with; it says nothing about the members.
    yield entry(b"pax_global_header", b"g", pax_records({b"comment": b"f" * 40}))
    yield from times()
    yield from attributes()
    yield from names()
    yield from order()
    yield from to_hide()


def times() -> Iterator[bytes]:
    yield folder(ODD + b"times", pax={b"mtime": b"1500000000.25"})
    exact = (
        *(b"1500000000.5", b"1500000000.123456789", b"1500000000.0000000019", b"0", b"0.000000001"),
        *(b"-1", b"-0.5", b"-2000000000", b"4102444800.999999999", b"9223372036", b"1"),
    )
    for text in exact:
        pax = {b"mtime": text, b"atime": b"1", b"ctime": b"2.5"}
        yield entry(ODD + b"times/file" + text, pax=pax)
        yield folder(ODD + b"times/dir" + text, pax=pax)
        yield entry(ODD + b"times/fifo" + text, FIFO, pax=pax)
        yield symlink(ODD + b"times/link" + text, b"x", pax=pax)
    for when in (9223372037, 253402300799, -1, -(2**40)):
        yield entry(ODD + b"times/base256-%d" % when, mtime=when)
        yield folder(ODD + b"times/base256-%d.d" % when, mtime=when)


def attributes() -> Iterator[bytes]:
    here = ODD + b"attributes/"
    yield folder(here)
    every = xattr(user__note=b"binary\0\xff", trusted__note=b"root's", security__note=b"a label")
    yield entry(here + b"file", data=b"x", pax=every)
    yield entry(here + b"empty-file", pax=every)
    yield folder(here + b"dir", pax=every)
    yield symlink(here + b"symlink", b"file", pax=xattr(trusted__note=b"x", security__note=b"y"))
    yield symlink(here + b"symlink-user", b"file", pax=xattr(user__note=b"Linux refuses this"))
    yield entry(here + b"fifo", FIFO, pax=xattr(trusted__note=b"x", user__note=b"refused"))
    yield entry(here + b"device", CHAR, device=(1, 3), pax=xattr(trusted__note=b"x"))
    yield entry(here + b"acl", data=b"x", pax=xattr(system__posix_acl_access=NOBODY_READS))
    yield entry(here + b"acl-empty-file", pax=xattr(system__posix_acl_access=NOBODY_READS))
    both = xattr(system__posix_acl_access=NOBODY_READS, system__posix_acl_default=NOBODY_READS)
    yield folder(here + b"acl-dir", mode=0o750, pax=both)
    yield entry(here + b"acl-dir/inherits", data=b"y")
    many = {b"SCHILY.xattr.user.n%02d" % number: b"%d" % number * 20 for number in range(30)}
    yield entry(here + b"many", data=b"x", pax=many)
    yield entry(here + b"long", data=b"x", pax={b"SCHILY.xattr.user." + b"n" * 200: b"v" * 2000})
    yield entry(here + b"odd", data=b"x", pax={b"SCHILY.xattr.user.\xff \n\xc3\xa9": b"odd name"})
    yield entry(here + b"capable", data=b"x", pax=xattr(security__capability=NAMESPACED))
    yield entry(here + b"capable-link", LINK, link=here + b"capable")
    yield entry(
        here + b"unknown", data=b"x", pax={b"LIBARCHIVE.xattr.user.x": b"eA==", b"x.y": b"z"}
    )
    for uid in (2_097_152, 4_294_967_294):
        yield entry(here + b"base256-%d" % uid, uid=uid, gid=uid)
        yield entry(here + b"pax-%d" % uid, pax={b"uid": b"%d" % uid, b"gid": b"%d" % uid})


def names() -> Iterator[bytes]:
    here = ODD + b"names/"
    yield folder(here)
    yield entry(here + b"raw-\xe9\xff", data=b"raw")
    binary = {b"hdrcharset": b"BINARY", b"path": here + b"pax-\xe9\xff"}
    yield entry(here + b"x", data=b"pax", pax=binary)
    yield entry(here + b"g" * 255, data=b"gnu", gnu=True)
    yield entry(here + b"p" * 255, data=b"pax")
    yield entry(b"prefixed", data=b"prefix", prefix=here[:-1])
    yield entry(b"./" + here + b"./dotted", data=b"dots")
    yield entry(b"/" + here + b"/absolute", data=b"slash")
    yield entry(here + b"old", OLD_FILE, data=b"old")
    yield entry(here + b"old-folder/", OLD_FILE)
    yield entry(here + b"exactly-" + b"n" * (100 - 8 - len(here)), data=b"no NUL in the header")
    for gnu in (False, True):
        flag = b"gnu" if gnu else b"pax"
        yield symlink(here + b"to-far-" + flag, b"far/" * 1023 + b"end", gnu=gnu)
        yield from deep(here + flag + b"-deep", gnu=gnu)


def deep(start: bytes, *, gnu: bool) -> Iterator[bytes]:
    """A file, two links and a folder whose paths have LONGEST bytes."""
    path = start
    while len(path) < LONGEST - 2 * 250:
        path += b"/" + b"n" * 250
        yield folder(path, gnu=gnu)
    path += b"/" + b"m" * ((LONGEST - len(path)) // 2)
    yield folder(path, gnu=gnu)
    left = LONGEST - len(path) - 1
    yield entry(path + b"/" + b"f" * left, data=b"far", gnu=gnu)
    yield entry(path + b"/" + b"l" * left, LINK, link=path + b"/" + b"f" * left, gnu=gnu)
    yield symlink(path + b"/" + b"s" * left, b"f" * left, gnu=gnu)
    yield folder(path + b"/" + b"d" * left, gnu=gnu)


def order() -> Iterator[bytes]:
    here = ODD + b"order/"
    yield folder(here)
    yield entry(here + b"missing/parents/file", data=b"x")
    yield entry(b"odd/implied/upper", data=b"x")
    yield entry(here + b"late/file", data=b"x")
    yield folder(here + b"late", mode=0o711, uid=5, mtime=T + 5)
    yield folder(here + b"real")
    yield symlink(here + b"alias", b"real")
    yield entry(here + b"alias/through-alias", data=b"x")
    yield entry(here + b"target", data=b"linked")
    yield entry(here + b"linked", LINK, link=here + b"target")
    yield entry(here + b"linked-absolute", LINK, link=b"/" + here + b"./target")
    yield entry(here + b"linked-chain", LINK, link=here + b"linked")
    yield entry(here + b"meta", data=b"x", mode=0o600)
    # docker gives the inode what its last name says.
    yield entry(here + b"meta-link", LINK, link=here + b"meta", mode=0o751, uid=7, mtime=T + 7)
    yield symlink(here + b"sym", b"nowhere", uid=1)
    yield entry(here + b"sym-link", LINK, link=here + b"sym", uid=9, mtime=T + 9)
    yield entry(here + b"fifo", FIFO)
    yield entry(here + b"fifo-link", LINK, link=here + b"fifo")
    yield folder(here + b"marked/late")
    yield entry(here + b"marked/file", data=b"its own layer's")
    yield entry(here + b"marked/.wh..wh..opq")
    yield entry(here + b".wh.never-was")


def to_hide() -> Iterator[bytes]:
    """What the upper layer hides or replaces."""
    here = ODD + b"hide/"
    for name in (b"file", b"raw-\xe9\xff", b"new\nline", b"n" * 250, b"again", b"opaque/a"):
        yield entry(here + name, data=b"lower")
    for name in (b"opaque/b/c", b"opaque-late/a", b"folder/x/y", b"stays/x", b"nested/in/a"):
        yield entry(here + name, data=b"lower")
    yield folder(here + b"stays", mode=0o700, pax=xattr(user__lower=b"1"), mtime=T - 1)
    yield folder(here + b"to-link")
    yield entry(here + b"to-link/x", data=b"lower")
    yield symlink(here + b"to-folder", b"stays")
    yield symlink(here + b"below-link", b"stays")
    yield entry(here + b"linked", data=b"linked")
    yield entry(here + b"linked-too", LINK, link=here + b"linked")


def upper() -> Iterator[bytes]:
    """The upper of the two layers."""
    here = ODD + b"hide/"
    for name in (b"file", b"raw-\xe9\xff", b"new\nline", b"n" * 250, b"again", b"folder"):
        yield entry(here + b".wh." + name)
    yield entry(here + b"again", data=b"upper")
    yield folder(here + b"opaque")
    yield entry(here + b"opaque/.wh..wh..opq")
    yield entry(here + b"opaque/b/new", data=b"upper")
    yield entry(here + b"opaque-late/new", data=b"upper")
    yield entry(here + b"opaque-late/.wh..wh..opq")
    yield folder(here + b"stays", mode=0o755, mtime=T + 1)
    yield symlink(here + b"to-link", b"stays")
    yield folder(here + b"to-folder")
    yield entry(here + b"to-folder/x", data=b"upper")
    yield entry(here + b"below-link/x", data=b"not in stays: the lower layer's link is not seen")
    yield entry(here + b"nested/in/.wh.a")
    yield entry(here + b"linked-too", data=b"no link any more")
    yield entry(here + b"second", LINK, link=here + b"linked-too")
    yield entry(b"etc/.wh.issue")
    yield folder(b"usr/share/pixmaps")
    yield entry(b"usr/share/pixmaps/.wh..wh..opq")


UNTIMED = {
    *("odd", "odd/tar", "odd/implied", "usr", "usr/share"),
    *("odd/tar/names/pax-deep", "odd/tar/names/gnu-deep"),
    *("odd/tar/order/missing", "odd/tar/order/missing/parents", "odd/tar/order/marked"),
    *("odd/tar/hide", "odd/tar/hide/below-link", "odd/tar/hide/opaque-late"),
    *("odd/tar/hide/opaque/b", "odd/tar/hide/nested", "odd/tar/hide/nested/in"),
}
"""Directories that a layer does not name: docker gives them the time when it unpacks them."""

LAYERS: dict[str, Callable[[], Iterator[bytes]]] = {"odd-lower": lower, "odd-upper": upper}


def layer(name: str) -> bytes:
    """The tar of one of LAYERS."""
    return b"".join(LAYERS[name]()) + bytes(2 * BLOCK)


def stack(engine: Engine, ref: str, names: tuple[str, ...], scratch: Path) -> None:
    """Put the layers *names* on the image *ref*, the first below, and one that is empty."""
    saved, inside = scratch / "saved.tar", scratch / "saved"
    engine.docker("save", "-o", str(saved), ref)
    inside.mkdir()
    subprocess.run(["tar", "-xf", str(saved), "-C", str(inside)], check=True)
    (image,) = json.loads((inside / "manifest.json").read_text())
    config = json.loads((inside / image["Config"]).read_text())
    for number, tar in enumerate([*map(layer, names), bytes(2 * BLOCK)]):
        # docker takes layers compressed as well.
        (inside / f"odd-{number}.tar").write_bytes(gzip.compress(tar, 1) if number else tar)
        image["Layers"].append(f"odd-{number}.tar")
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
        config["history"].append({"created_by": "tests/engine/odd_layers.py"})
    image["Config"] = "config.json"
    (inside / "config.json").write_text(json.dumps(config))
    (inside / "manifest.json").write_text(json.dumps([image]))
    subprocess.run(["tar", "-cf", str(saved), "-C", str(inside), "."], check=True)
    engine.docker("load", "-q", "-i", str(saved))

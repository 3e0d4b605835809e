"""
Hostile layers through the real unpacker, beside a model of what should come out.

A case is made from one number.  The unpacker runs as the node runs it, in a
process whose root is the layer's folder (a fork here: starting Python each
time would take most of the time).  The model is `flatten`: what `gear build`
makes of the same layers, and so what a container shows.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import stat
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gear_plugin.confined import untar
from gear_plugin.errors import GearError
from gear_plugin.image import NO_XATTRS, Directory, Inode, Kind, Member, TarReader, Tree, flatten
from tests.fuzz import repair
from tests.fuzz.members import encode
from tests.fuzz.run import mutated

Listing = dict[bytes, tuple[Any, ...]]

_NAMES = (b"a", b"b", b"c", b"l", b"d")
_TIME_NS = 1_600_000_000 * 10**9
_ODD_NAMES = (b"\xff\xfe", b"-rf", b"n" * 255, b" ", b"\n", b"...", b".wh", b"*")
_XATTRS = ((b"user.u", b"1"), (b"trusted.t", b"\0"), (b"trusted.overlay.opaque", b"y"),
           (b"trusted.overlay.redirect", b"/etc"), (b"com.apple.x", b"2"))  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the unpacker said: its size and files, or an error's class and message."""

    error: str | None
    message: str


def unpack(folder: Path, data: bytes, *, lowest: bool) -> Outcome:
    """Run the unpacker on *data* in a child whose root becomes *folder*."""
    source = os.memfd_create("layer")
    os.write(source, data)
    os.lseek(source, 0, os.SEEK_SET)
    answer_r, answer_w = os.pipe()
    child = os.fork()
    if child == 0:
        # Nothing of the parent may run here: no exit handlers, no flushing.
        try:
            os.dup2(source, 0)
            os.dup2(answer_w, 1)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            untar.main([str(folder), *(["--lowest"] if lowest else [])])
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            text = json.dumps({"error": "bug", "message": traceback.format_exc()})
            os.write(answer_w, text.encode())
            os._exit(70)
    os.close(source)
    os.close(answer_w)
    with os.fdopen(answer_r, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    found = json.loads(said)
    return Outcome(found.get("error"), str(found.get("message", "")))


def listing(folder: Path) -> Listing:
    """Everything in *folder*, itself as `b""`, in the terms of `modelled`."""
    found: Listing = {}
    first: dict[tuple[int, int], bytes] = {}
    root = os.fsencode(folder)
    todo = [b""]
    while todo:
        path = todo.pop()
        at = root + b"/" + path if path else root
        try:
            status = os.lstat(at)
        except FileNotFoundError:
            # overlayfs lists a whiteout where no lower layer has the
            # directory, as it does for docker's own driver, and cannot open it.
            continue
        kind = stat.S_IFMT(status.st_mode)
        special = kind in (stat.S_IFCHR, stat.S_IFBLK)
        found[path] = (
            *(kind, stat.S_IMODE(status.st_mode) if kind != stat.S_IFLNK else 0),
            *(status.st_uid, status.st_gid, status.st_mtime_ns),
            _content(at) if kind == stat.S_IFREG else b"",
            os.readlink(at) if kind == stat.S_IFLNK else b"",
            (os.major(status.st_rdev), os.minor(status.st_rdev)) if special else (0, 0),
            _xattrs(at),
            b"" if kind == stat.S_IFDIR else first.setdefault((status.st_dev, status.st_ino), path),
        )
        if kind == stat.S_IFDIR:
            inner = sorted(os.listdir(at), reverse=True)
            todo += [path + b"/" + name if path else name for name in inner]
    # The first name of a hard-linked inode must not depend on the order of the walk.
    return _with_first_names(found)


def _content(at: bytes) -> bytes:
    with open(at, "rb") as file:
        return hashlib.sha256(file.read()).digest()


def _xattrs(at: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(at, follow_symlinks=False))
    return tuple((name, os.getxattr(at, name, follow_symlinks=False)) for name in names)


_BITS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIR: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


def modelled(layers: list[bytes]) -> Listing:
    """What a container should show of these layer tars; raises GearError."""
    flattened = flatten([TarReader(io.BytesIO(data), seekable=False) for data in layers])
    contents = {
        content.inode: layers[content.layer][content.offset : content.offset + content.size]
        for content in flattened.contents
    }
    return _with_first_names(_listed(flattened.tree, contents))


def _listed(tree: Tree, contents: dict[Inode, bytes]) -> Listing:
    first: dict[Inode, bytes] = {}
    return {
        path: (
            *(_BITS[node.kind], node.mode if node.kind is not Kind.SYMLINK else 0),
            *(node.uid, node.gid, node.mtime_ns),
            hashlib.sha256(contents.get(node, b"")).digest() if node.kind is Kind.FILE else b"",
            node.target,
            (node.major, node.minor),
            tuple((name.decode(errors="surrogateescape"), value)
                  for name, value in node.xattrs.items()),
            b"" if isinstance(node, Directory) else first.setdefault(node, path),
        )
        for path, node in tree.walk()
    }  # fmt: skip


def _with_first_names(found: Listing) -> Listing:
    groups: dict[bytes, list[bytes]] = {}
    for path, entry in found.items():
        groups.setdefault(entry[-1], []).append(path)
    firsts = {key: min(paths) for key, paths in groups.items()}
    return {path: (*entry[:-1], firsts[entry[-1]] if entry[-1] else b"")
            for path, entry in found.items()}  # fmt: skip


def differences(found: Listing, expected: Listing) -> list[str]:
    """What differs; a directory without an entry of its own may have any time."""
    problems = []
    for path in sorted(found.keys() | expected.keys()):
        one, other = found.get(path), expected.get(path)
        if one and other and other[0] == stat.S_IFDIR and other[4] == 0:
            one = (*one[:4], 0, *one[5:])
        if one != other:
            problems.append(f"{path!r}: {one} instead of {other}")
    return problems


class Maker:
    """Makes layers from a number."""

    def __init__(self, number: int) -> None:
        self.chance = random.Random(number)

    def hostile(self, outside: Path) -> bytes:
        """A layer that tries to get at *outside*, in any way a tar has."""
        members = [self._hostile_member(outside) for _ in range(self.chance.randint(1, 12))]
        data = b"".join(encode(member, self._data(member)) for member in members) + bytes(1024)
        if self.chance.random() < 0.3:
            data = repair.tar(mutated(data, self.chance))
        return data

    def lawful(self) -> bytes:
        """A layer in which every directory has its own entry before what is in it."""
        members: list[Member] = []
        known: set[bytes] = set()
        for _ in range(self.chance.randint(1, 12)):
            folder = b"/".join(self._some(_NAMES) for _ in range(self.chance.randint(0, 2)))
            parts = folder.split(b"/") if folder else []
            for depth in range(len(parts)):
                parent = b"/".join(parts[: depth + 1])
                if parent not in known:
                    known.add(parent)
                    members.append(self._member(parent, Kind.DIR))
            prefix = folder + b"/" if folder else b""
            name = prefix + self._some(_NAMES)
            match self.chance.randrange(10):
                case 0 | 1:
                    members.append(self._member(prefix + b".wh." + self._some(_NAMES)))
                case 2 if folder:
                    members.append(self._member(prefix + b".wh..wh..opq"))
                case _:
                    kind = self._some(tuple(Kind))
                    members.append(self._member(name, kind))
                    known = {path for path in known if not (path + b"/").startswith(name + b"/")}
                    if kind is Kind.DIR:
                        known.add(name)
        return b"".join(encode(member, self._data(member)) for member in members) + bytes(1024)

    def _hostile_member(self, outside: Path) -> Member:
        away = os.fsencode(outside)
        parts = [
            self._some((*_NAMES, *_NAMES, *_ODD_NAMES)) for _ in range(self._some((1, 1, 2, 3)))
        ]
        if self.chance.random() < 0.15:
            parts[-1] = b".wh." + self._some((*_NAMES, b".wh..opq", b"", b".", b".wh.plnk"))
        name = b"/".join(parts) if self.chance.random() < 0.97 else b""
        link = self._some(
            (
                *_NAMES, b"a/b", b"/a", b".", b"/", b"..", b"../../..", b"/proc/1/root", b"a/../b",
                away, away + b"/canary", b"../" * 8 + away[1:], b"l/" * 50,
            )
        )  # fmt: skip
        kind = self._some((*Kind, Kind.SYMLINK, Kind.SYMLINK, Kind.HARDLINK, Kind.DIR, Kind.FILE))
        if kind is Kind.HARDLINK:
            link = link.replace(b"..", b".").strip(b"/")
        return self._member(name, kind, link)

    def _member(self, name: bytes, kind: Kind = Kind.FILE, link: bytes = b"") -> Member:
        chance = self.chance
        device = kind in (Kind.CHAR, Kind.BLOCK)
        linked = kind in (Kind.SYMLINK, Kind.HARDLINK)
        return Member(
            *(name, kind, chance.choice((0o644, 0o755, 0o4755, 0o1777, 0))),
            *(chance.choice((0, 1000, 2**32 - 1, 2**32 - 2)), chance.choice((0, 7))),
            _TIME_NS + chance.randrange(10**12),
            chance.choice((0, 1, 700)) if kind is Kind.FILE else 0,
            link or (self._some((*_NAMES, b"a/b")) if linked else b""),
            *(chance.choice(((0, 0), (1, 3), (7, 200))) if device else (0, 0)),
            dict(chance.sample(_XATTRS, chance.randint(1, 3)))
            if chance.random() < 0.2
            else NO_XATTRS,
            0,
        )

    def _data(self, member: Member) -> bytes:
        return self.chance.randbytes(member.size)

    def _some(self, choices: tuple[Any, ...]) -> Any:
        return self.chance.choice(choices)


def try_hostile(number: int, base: Path) -> bool:
    """
    Unpack a hostile layer: nothing outside its folder changes, no bug shows,
    and what is accepted is what the model says.  Returns whether it was.
    """
    outside, layer = base / "outside", base / "layer"
    for folder in (outside, layer):
        folder.mkdir()
    (outside / "canary").write_bytes(b"untouched")
    before = listing(outside), sorted(os.listdir(base))
    data = Maker(number).hostile(outside)
    outcome = unpack(layer, data, lowest=True)
    assert outcome.error != "bug", outcome.message
    assert (listing(outside), sorted(os.listdir(base))) == before
    if outcome.error is not None:
        assert "\n" not in outcome.message
        assert len(outcome.message) < 1000
        return False
    try:
        expected = modelled([data])
    except GearError as error:
        raise AssertionError(f"unpacked, but gear build refuses it: {error}") from error
    assert differences(listing(layer), expected) == []
    return True


def try_lawful(number: int, base: Path) -> bool:
    """
    Unpack two layers and mount them: a container shows what the model says.
    Returns whether both were accepted.
    """
    from gear_plugin.rootfs import Stack, mount_stack, unmount

    maker = Maker(number)
    layers = [maker.lawful(), maker.lawful()]
    for name in ("0", "1", "merged"):
        (base / name).mkdir()
    for name, data in zip(("0", "1"), layers, strict=True):
        outcome = unpack(base / name, data, lowest=name == "0")
        assert outcome.error != "bug", outcome.message
        if outcome.error is not None:
            return False
    mount_stack(base / "merged", Stack((base / "1", base / "0")))
    try:
        found = listing(base / "merged")
    finally:
        unmount(base / "merged")
    with contextlib.suppress(GearError):
        expected = modelled(layers)
        # The upper layer's own root folder stands for itself.
        assert differences(found, {**expected, b"": found[b""]}) == []
        return True
    raise AssertionError("unpacked, but gear build refuses it")

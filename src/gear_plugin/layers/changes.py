"""
What changed between two trees, in docker's terms.

`compare` follows moby's pkg/archive ChangesDirs: a directory's size and time
do not count; mode, owner, device number and `security.capability` always do,
size and time for everything else (equal when the seconds agree and either has
no nanoseconds).  The parent directories of a change count as modified.
Reads both trees through their mounts; thread-safe.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from gear_plugin.confined.whiteout import WHITEOUT, is_opaque, is_whiteout
from gear_plugin.layers.tarout import Item


class ChangeKind(IntEnum):
    """docker's numbers (moby pkg/archive/changes.go)."""

    MODIFY = 0
    ADD = 1
    DELETE = 2


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One changed path, absolute inside the container."""

    path: bytes
    kind: ChangeKind


def of_upper(upper: Path, below: Path) -> list[Change]:
    """The changes that *upper* makes to the tree *below* it, sorted by path."""
    found: dict[bytes, ChangeKind] = {}
    base = os.fsencode(below)

    def visit(name: bytes, source: bytes) -> None:
        for child in os.listdir(source):
            path, inner = name + b"/" + child, source + b"/" + child
            status = os.lstat(inner)
            if is_whiteout(status):
                found[path] = ChangeKind.DELETE
                continue
            exists = os.path.lexists(base + path)
            found[path] = ChangeKind.MODIFY if exists else ChangeKind.ADD
            if stat.S_ISDIR(status.st_mode):
                if exists and is_opaque(inner) and os.path.isdir(base + path):
                    here = set(os.listdir(inner))
                    gone = set(os.listdir(base + path)) - here
                    found.update({path + b"/" + old: ChangeKind.DELETE for old in gone})
                visit(path, inner)

    visit(b"", os.fsencode(upper))
    return sorted(Change(path, kind) for path, kind in found.items())


def compare(old: Path | None, new: Path) -> list[Change]:
    """The changes from the tree *old* (None: empty) to the tree *new*, sorted by path."""
    return sorted(_compare(None if old is None else os.fsencode(old), os.fsencode(new), b""))


def _compare(old: bytes | None, new: bytes, name: bytes) -> Iterator[Change]:
    before = set(os.listdir(old)) if old is not None else set()
    after = set(os.listdir(new))
    changed = bool(before - after)
    for child in before - after:
        yield Change(name + b"/" + child, ChangeKind.DELETE)
    for child in sorted(after):
        path, inner = name + b"/" + child, new + b"/" + child
        status = os.lstat(inner)
        outer = old + b"/" + child if old is not None and child in before else None
        kind = None if outer is None else _modified(os.lstat(outer), outer, status, inner)
        if outer is None:
            kind = ChangeKind.ADD
        changed |= kind is not None
        nested: list[Change] = []
        if stat.S_ISDIR(status.st_mode):
            is_dir = outer is not None and stat.S_ISDIR(os.lstat(outer).st_mode)
            nested = list(_compare(outer if is_dir else None, inner, path))
            if nested and kind is None:
                kind, changed = ChangeKind.MODIFY, True
        if kind is not None:
            yield Change(path, kind)
        yield from nested


def _modified(
    before: os.stat_result, outer: bytes, after: os.stat_result, inner: bytes
) -> ChangeKind | None:
    same = (
        before.st_mode == after.st_mode
        and before.st_uid == after.st_uid
        and before.st_gid == after.st_gid
        and before.st_rdev == after.st_rdev
        and _capability(outer) == _capability(inner)
    )
    if same and not stat.S_ISDIR(after.st_mode):
        same = before.st_size == after.st_size and _same_time(before, after)
    return None if same else ChangeKind.MODIFY


def _same_time(before: os.stat_result, after: os.stat_result) -> bool:
    one, other = divmod(before.st_mtime_ns, 10**9), divmod(after.st_mtime_ns, 10**9)
    return one == other or (one[0] == other[0] and 0 in (one[1], other[1]))


def _capability(path: bytes) -> bytes:
    try:
        return os.getxattr(path, "security.capability", follow_symlinks=False)
    except OSError:
        return b""


def as_items(changes: list[Change], tree: Path) -> Iterator[Item]:
    """The tar items of *changes*, read from *tree*, where they have happened."""
    root = os.fsencode(tree)
    for change in changes:
        name = change.path[1:]
        if change.kind is ChangeKind.DELETE:
            parent, slash, base = name.rpartition(b"/")
            yield Item(parent + slash + WHITEOUT + base, None)
        else:
            yield Item(name, root + change.path)


def size_of(changes: list[Change], tree: Path) -> int:
    """The bytes of the regular files that *changes* added or modified; hard links once."""
    root = os.fsencode(tree)
    seen: dict[tuple[int, int], int] = {}
    for change in changes:
        if change.kind is not ChangeKind.DELETE:
            status = os.lstat(root + change.path)
            if stat.S_ISREG(status.st_mode):
                seen[(status.st_dev, status.st_ino)] = status.st_size
    return sum(seen.values())

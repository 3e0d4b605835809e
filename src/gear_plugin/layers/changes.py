"""
What changed between two trees, in docker's terms.

What counts is moby's pkg/archive ChangesDirs (v20.10.24), which its overlay2
uses too: size and time of a directory, block device or socket do not; mode,
owner, device number and `security.capability` always do, size and time for
everything else (equal when the seconds agree and either has no nanoseconds).
The parent directories of a change count as modified.  What a directory held
that something else replaced is not listed.

moby walks both trees; here overlayfs's own record, the upper directory, says
where to look, so the cost is that of the changes and not that of the image.
Reads trees through their mounts, opens no file; thread-safe.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
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
    return _Comparison(upper_only=True).run(os.fsencode(below), os.fsencode(upper))


def compare(old: Path | None, new: Path) -> list[Change]:
    """The changes from the tree *old* (None: empty) to the tree *new*, sorted by path."""
    return _Comparison(upper_only=False).run(
        None if old is None else os.fsencode(old), os.fsencode(new)
    )


class _Comparison:
    """
    One walk over pairs of directories, without recursion: trees may be deep.

    *upper_only*: the new tree is an upper directory; what it does not name is
    as it was, but not in an opaque directory, nor anywhere below one.
    """

    def __init__(self, *, upper_only: bool) -> None:
        self._upper_only = upper_only
        self._found: dict[bytes, ChangeKind] = {}
        self._pending: list[tuple[bytes, bytes | None, bytes, bool]] = []

    def run(self, old: bytes | None, new: bytes) -> list[Change]:
        self._pending = [(b"", old, new, not self._upper_only)]
        while self._pending:
            self._directory(*self._pending.pop())
        return [Change(path, self._found[path]) for path in sorted(self._found)]

    def _directory(self, name: bytes, old: bytes | None, new: bytes, is_whole: bool) -> None:
        """
        Compare the children of *new* with those of *old* (None: there was no directory).

        *is_whole*: nothing is in *new* but what it names.
        """
        present = _names(new)
        is_whole = is_whole or is_opaque(new)
        if old is not None and is_whole:
            for gone in set(_names(old)).difference(present):
                self._note(name + b"/" + gone, ChangeKind.DELETE)
        for child in present:
            path, inner = name + b"/" + child, new + b"/" + child
            outer = None if old is None else old + b"/" + child
            if self._entry(path, outer, inner):
                was_directory = outer is not None and _is_directory(outer)
                self._pending.append((path, outer if was_directory else None, inner, is_whole))

    def _entry(self, path: bytes, outer: bytes | None, inner: bytes) -> bool:
        """Compare one child; whether it is a directory, to be looked into."""
        after = _status(inner)
        if after is None:
            return False  # a running container has removed it meanwhile
        before = None if outer is None else _status(outer)
        if self._upper_only and is_whiteout(after):
            if before is not None:
                self._note(path, ChangeKind.DELETE)
            return False
        if before is None or outer is None:
            self._note(path, ChangeKind.ADD)
        elif _is_modified(before, outer, after, inner):
            self._note(path, ChangeKind.MODIFY)
        return stat.S_ISDIR(after.st_mode)

    def _note(self, path: bytes, kind: ChangeKind) -> None:
        """Note a change, and that the directories above it were modified by it."""
        self._found[path] = kind
        while (path := path.rpartition(b"/")[0]) and path not in self._found:
            self._found[path] = ChangeKind.MODIFY


def _status(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _is_directory(path: bytes) -> bool:
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _names(directory: bytes) -> list[bytes]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_modified(before: os.stat_result, outer: bytes, after: os.stat_result, inner: bytes) -> bool:
    same = (
        before.st_mode == after.st_mode
        and before.st_uid == after.st_uid
        and before.st_gid == after.st_gid
        and before.st_rdev == after.st_rdev
    )
    # moby asks for the bit of S_IFDIR, which block devices and sockets have as well.
    if same and after.st_mode & stat.S_IFDIR != stat.S_IFDIR:
        same = before.st_size == after.st_size and _same_time(before, after)
    return not same or _capability(outer) != _capability(inner)


def _same_time(before: os.stat_result, after: os.stat_result) -> bool:
    one, other = divmod(before.st_mtime_ns, 10**9), divmod(after.st_mtime_ns, 10**9)
    return one == other or (one[0] == other[0] and 0 in (one[1], other[1]))


def _capability(path: bytes) -> bytes:
    try:
        return os.getxattr(path, "security.capability", follow_symlinks=False)
    except OSError:
        return b""


def without(changes: list[Change], folder: bytes, names: Collection[bytes]) -> list[Change]:
    """*changes* without the removal of *names* from *folder*, and of a folder that held no more."""
    gone = {b"%s/%s" % (folder, name) for name in names} | {folder}
    left = [one for one in changes if one.kind is not ChangeKind.DELETE or one.path not in gone]
    is_inside = any(one.path.startswith(folder + b"/") for one in left)
    return left if is_inside else [one for one in left if one.path != folder]


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


def size_of_tree(tree: Path) -> int:
    """The bytes of the regular files in *tree*, hard links once."""
    return _bytes_of(_everything(os.fsencode(tree)))


def size_of(changes: list[Change], tree: Path) -> int:
    """The bytes of the regular files that *changes* added or modified; hard links once."""
    root = os.fsencode(tree)
    paths = (root + one.path for one in changes if one.kind is not ChangeKind.DELETE)
    return _bytes_of(status for path in paths if (status := _status(path)) is not None)


def _everything(root: bytes) -> Iterator[os.stat_result]:
    pending = [root]
    while pending:
        directory = pending.pop()
        for name in _names(directory):
            path = directory + b"/" + name
            status = _status(path)
            if status is not None:
                yield status
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path)


def _bytes_of(found: Iterable[os.stat_result]) -> int:
    total = 0
    linked: set[tuple[int, int]] = set()
    for status in found:
        if not stat.S_ISREG(status.st_mode):
            continue
        if status.st_nlink > 1:
            identity = (status.st_dev, status.st_ino)
            if identity in linked:
                continue
            linked.add(identity)
        total += status.st_size
    return total

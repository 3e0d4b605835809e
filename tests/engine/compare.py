"""
An independent comparison of two root filesystems.

Knows nothing of Gear: walks both with lstat, listxattr and plain reads.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """All that can be told of one path, but for its hard links."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    links: int
    device: int
    target: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    content: str


def differences(a: Path, b: Path, ignore: Collection[str] = ()) -> list[str]:
    """
    Every difference between the trees *a* and *b*, a line each; none: they are equal.

    *ignore* has paths, relative to the root and without a leading slash, that
    are passed over with all that is below them.
    """
    left, left_links = _scan(a, ignore)
    right, right_links = _scan(b, ignore)
    found = [f"only in the first: {path!r}" for path in sorted(left.keys() - right.keys())]
    found += [f"only in the second: {path!r}" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        one, two = left[path], right[path]
        found += [
            f"{path!r}: {name} {getattr(one, name)!r} != {getattr(two, name)!r}"
            for name in Seen.__dataclass_fields__
            if getattr(one, name) != getattr(two, name)
        ]
    found += [f"hard links: {sorted(group)!r}" for group in left_links ^ right_links]
    return found


def _scan(root: Path, ignore: Collection[str]) -> tuple[dict[bytes, Seen], set[frozenset[bytes]]]:
    skipped = {os.fsencode(path) for path in ignore}
    seen: dict[bytes, Seen] = {}
    links: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    for path, full in _walk(os.fsencode(root), b"", skipped):
        status = os.lstat(full)
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            links[(status.st_dev, status.st_ino)].add(path)
        seen[path] = _look(full, status)
    return seen, {frozenset(group) for group in links.values()}


def _walk(root: bytes, prefix: bytes, skipped: set[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for name in os.listdir(root):
        path, full = prefix + name, root + b"/" + name
        if path in skipped:
            continue
        yield path, full
        if stat.S_ISDIR(os.lstat(full).st_mode):
            yield from _walk(full, path + b"/", skipped)


def _look(full: bytes, status: os.stat_result) -> Seen:
    kind = stat.S_IFMT(status.st_mode)
    directory = kind == stat.S_IFDIR
    xattrs = sorted(os.listxattr(full, follow_symlinks=False))
    return Seen(
        kind=oct(kind),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        # A directory's size and links are the filesystem's own affair.
        size=0 if directory else status.st_size,
        links=0 if directory else status.st_nlink,
        device=status.st_rdev,
        target=os.readlink(full) if kind == stat.S_IFLNK else b"",
        xattrs=tuple((name, os.getxattr(full, name, follow_symlinks=False)) for name in xattrs),
        content=_hash(full) if kind == stat.S_IFREG else "",
    )


def _hash(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""
An independent comparison of two root filesystems.

Knows nothing of Gear.  `scan` walks a tree with scandir, lstat, listxattr and
plain reads, each relative to its directory, so that no path is too long and
no tree too deep.  `exported` is a second way, which shares nothing with it:
GNU tar's list and digest of what `docker export` sends.
"""

from __future__ import annotations

import functools
import hashlib
import os
import resource
import stat
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from tests.engine.engine import Engine

_ZEROS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Seen:
    """All that can be told of one path, but for its hard links."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    hollow: bool
    """Bytes but no blocks, which is true of zeros alone: `tar -S` does not read such a file."""
    links: int
    device: int
    target: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    content: str


@dataclass(frozen=True, slots=True)
class Scan:
    """A whole tree: every path, which of them are one inode, and what does not add up."""

    seen: dict[bytes, Seen]
    groups: dict[bytes, frozenset[bytes]]
    """For each path that shares its inode number, the paths that do."""
    faults: list[str]


def scan(root: Path, ignore: Collection[str] = ()) -> Scan:
    """
    Everything below *root*, and the root itself as `b"."`.

    *ignore* has paths, relative to the root and without a leading slash, that
    are passed over with all that is below them.
    """
    # One descriptor for each level of the deepest directory.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    skipped = {os.fsencode(path) for path in ignore}
    found = Scan({}, {}, [])
    inodes: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    for path, folder, name in _walk(root, skipped, found.faults):
        status = os.lstat(name, dir_fd=folder)
        if not stat.S_ISDIR(status.st_mode):
            inodes[(status.st_dev, status.st_ino)].add(path)
        found.seen[path] = _look(folder, name, status)
    for group in inodes.values():
        if len(group) > 1:
            found.groups.update(dict.fromkeys(group, frozenset(group)))
    return found


def differences(theirs: Scan, ours: Scan) -> list[str]:
    """
    Every difference between two trees, and every fault of *ours*, a line each.

    *theirs* may have faults: overlayfs lists whiteouts that hide nothing.  The
    count of hard links may differ where *theirs* counts names that are not in
    the tree: overlayfs says what the lower layer had.
    """
    found = [f"only in the first: {path!r}" for path in sorted(theirs.seen.keys() - ours.seen)]
    found += [f"only in the second: {path!r}" for path in sorted(ours.seen.keys() - theirs.seen)]
    for path in sorted(theirs.seen.keys() & ours.seen.keys()):
        one, two = theirs.seen[path], ours.seen[path]
        if one == two:
            continue
        names = len(ours.groups.get(path, (path,)))
        for name in (field.name for field in fields(Seen)):
            before, after = getattr(one, name), getattr(two, name)
            if before != after and not (name == "links" and after == names):
                found.append(f"{path!r}: {name} {before!r} != {after!r}")
    uneven = set(theirs.groups.values()) ^ set(ours.groups.values())
    found += [f"hard links: {sorted(group)!r}" for group in uneven]
    return found + ours.faults


def _walk(root: Path, skipped: set[bytes], faults: list[str]) -> Iterator[tuple[bytes, int, bytes]]:
    """Every path, with its directory's descriptor (good until the next one) and its name in it."""
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield b".", top, b"."
    stack = [(top, b"", iter(_names(top, b"", faults)))]
    while stack:
        folder, prefix, names = stack[-1]
        name = next(names, None)
        if name is None:
            os.close(folder)
            stack.pop()
            continue
        path = prefix + name
        if path in skipped:
            continue
        yield path, folder, name
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            stack.append((below, path + b"/", iter(_names(below, path + b"/", faults))))


def _names(folder: int, prefix: bytes, faults: list[str]) -> list[bytes]:
    """The names in a directory, and the faults of its listing."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            names.append(name)
            try:
                mode = os.lstat(name, dir_fd=folder).st_mode
            except OSError as error:
                faults.append(f"{prefix + name!r} is listed, but: {error.strerror}")
                names.pop()
                continue
            # These come from the listing itself, where it has types.
            told = (
                entry.is_file(follow_symlinks=False),
                entry.is_dir(follow_symlinks=False),
                entry.is_symlink(),
            )
            if told != (stat.S_ISREG(mode), stat.S_ISDIR(mode), stat.S_ISLNK(mode)):
                faults.append(f"{prefix + name!r} is listed as another kind of file")
            if stat.S_ISCHR(mode) and os.lstat(name, dir_fd=folder).st_rdev == 0:
                faults.append(f"{prefix + name!r} is a whiteout")
    if len(set(names)) != len(names):
        faults.append(f"{prefix!r} lists a name twice")
    return sorted(names)


def _look(folder: int, name: bytes, status: os.stat_result) -> Seen:
    kind = stat.S_IFMT(status.st_mode)
    directory = kind == stat.S_IFDIR
    # There is no listxattrat before Linux 6.13; this is short whatever the path.
    full = b"/proc/self/fd/%d/%s" % (folder, name)
    xattrs = sorted(os.listxattr(full, follow_symlinks=False))
    content = _hash(folder, name) if kind == stat.S_IFREG else ""
    hollow = kind == stat.S_IFREG and status.st_size > 0 and status.st_blocks == 0
    return Seen(
        kind=oct(kind),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        # A directory's size and links are the filesystem's own affair.
        size=0 if directory else status.st_size,
        hollow=hollow and content != _hash_of_zeros(status.st_size),
        links=0 if directory else status.st_nlink,
        device=status.st_rdev,
        target=os.readlink(name, dir_fd=folder) if kind == stat.S_IFLNK else b"",
        xattrs=tuple((attr, os.getxattr(full, attr, follow_symlinks=False)) for attr in xattrs),
        content=content,
    )


@functools.cache
def _hash_of_zeros(size: int) -> str:
    found = hashlib.sha256()
    for at in range(0, size, _ZEROS_BYTES):
        found.update(bytes(min(_ZEROS_BYTES, size - at)))
    return found.hexdigest()


def _hash(folder: int, name: bytes) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Exported:
    """What `docker export` sends, as GNU tar reads it."""

    listing: list[str]
    """Type, mode, owner, size, time, name and link of each member, in the order of the stream."""
    content: str
    """The sha256 of all contents, one after another."""


def exported(engine: Engine, container: str, scratch: Path, ignore: Collection[str]) -> Exported:
    """The exported *container*; members below *ignore* are left out."""
    tar = scratch / "exported.tar"
    engine.docker("export", "-o", str(tar), container)
    left_out = [f"--exclude={path}" for path in ignore]
    common = ["tar", "--anchored", "--no-wildcards", *left_out, "-f", str(tar)]
    form = ["--numeric-owner", "--full-time", "--quoting-style=escape"]
    listed = subprocess.run([*common, *form, "-tv"], capture_output=True, check=True)
    with subprocess.Popen([*common, "-xO"], stdout=subprocess.PIPE) as contents:
        assert contents.stdout is not None
        digest = hashlib.file_digest(contents.stdout, "sha256").hexdigest()  # type: ignore[arg-type]
    assert contents.returncode == 0
    tar.unlink()
    return Exported(listed.stdout.decode().splitlines(), digest)

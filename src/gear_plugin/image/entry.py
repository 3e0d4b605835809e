"""
What one inode of an image is: metadata, and for a regular file the digest of its content.

Leaves names and structure to `tree`.  An inode is plain mutable data, because
flattening updates directories and the digest comes after hashing; once a tree
is complete it is read-only by agreement.  Not safe to change from two threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from gear_plugin.digest import Digest

NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})
"""The one empty mapping that every inode without xattrs shares."""

DEFAULT_DIRECTORY_MODE = 0o755
NO_OWNER = 2**32 - 1
"""What chown(2) takes for "leave it as it is"; no file has this uid or gid."""
MAX_NAME_BYTES = 255
"""NAME_MAX of Linux."""
MAX_PATH_BYTES = 4095
"""PATH_MAX of Linux without its NUL; also the longest symbolic link."""


class Kind(Enum):
    """What a tar member or an inode is; `HARDLINK` stands in tar members only."""

    FILE = "regular file"
    DIR = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    CHAR = "character device"
    BLOCK = "block device"
    FIFO = "fifo"

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is ten times slower


@dataclass(slots=True, eq=False)
class Inode:
    """
    One inode; two names that hold the same `Inode` are hard links.

    Compared and hashed by identity.  `mode` is the 07777 bits.  `size` is in
    bytes and set for regular files alone.  `target` is a symlink's text.
    `digest` is None for empty files and for everything that is not a regular
    file; a non-empty regular file has one as soon as its content was hashed.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    target: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: NO_XATTRS)
    digest: Digest | None = None


@dataclass(slots=True, eq=False)
class Directory(Inode):
    """A directory; `children` maps names (never empty, `.`, `..`, with `/` or NUL) to inodes."""

    kind: Kind = field(default=Kind.DIR, init=False)
    mode: int = DEFAULT_DIRECTORY_MODE
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    children: dict[bytes, Inode] = field(default_factory=dict)

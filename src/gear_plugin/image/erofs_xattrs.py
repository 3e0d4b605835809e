"""
Inline xattrs of an EROFS inode, and the two through which overlayfs finds content.

A non-empty regular file has `trusted.overlay.metacopy` (empty) and
`trusted.overlay.redirect` (`/<3 hex>/<61 hex>`), first and in this order; see
Linux's Documentation/filesystems/overlayfs.rst, "Data-only lower layers".
They are never among `Inode.xattrs`: they are written from its digest and read
into it.  Pure functions.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from gear_plugin.digest import Digest
from gear_plugin.errors import BadDigest, IndexDamaged, Unsupported
from gear_plugin.image.entry import NO_XATTRS

# name filter (unused), number of shared xattrs (none), zeros
_HEADER = bytes(12)
_ENTRY = struct.Struct("<BBH")
_MAX_BODY_BYTES = len(_HEADER) + 4 * (0xFFFF - 1)
_MAX_SUFFIX_BYTES = 0xFF
_MAX_VALUE_BYTES = 0xFFFF

_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
_WHOLE_NAMES = (2, 3)
_OVERLAY = b"trusted.overlay."
_METACOPY = b"trusted.overlay.metacopy"
_REDIRECT = b"trusted.overlay.redirect"


def count_field(body_size: int) -> int:
    """The inode's xattr count for a body of *body_size* bytes."""
    return (body_size - len(_HEADER)) // 4 + 1 if body_size else 0


def body_size(count: int) -> int:
    """The inverse of `count_field`."""
    return len(_HEADER) + 4 * (count - 1) if count else 0


def encode(xattrs: Mapping[bytes, bytes], digest: Digest | None) -> bytes:
    """The xattr body of an inode; empty if it has none.  Raises Unsupported."""
    if digest is not None:
        parts = [CONTENT_HEAD, digest.shard_path.encode(), CONTENT_PAD]
    elif xattrs:
        parts = [_HEADER]
    else:
        return b""
    if xattrs:
        if any(name.startswith(_OVERLAY) for name in xattrs):
            raise Unsupported("index: an image's own trusted.overlay.* xattrs cannot be carried")
        parts.extend(_entry(name, xattrs[name]) for name in sorted(xattrs))
    body = b"".join(parts)
    if len(body) > _MAX_BODY_BYTES:
        raise Unsupported(f"index: {len(body)} bytes of xattrs on one file")
    return body


def decode(body: bytes) -> tuple[Mapping[bytes, bytes], Digest | None]:
    """
    The xattrs of an inode's body, and the digest that its overlay xattrs name.

    Raises IndexDamaged, also for an overlay xattr that `encode` would not
    have written.
    """
    if body[: len(CONTENT_HEAD)] == CONTENT_HEAD:
        end = len(CONTENT_HEAD) + PATH_BYTES
        digest = _digest(body[len(CONTENT_HEAD) : end])
        at = end + len(CONTENT_PAD)
        if body[end:at] != CONTENT_PAD:
            raise IndexDamaged("index: an xattr's padding is not zero")
        return (_entries(body, at) if len(body) > at else NO_XATTRS), digest
    if body[: len(_HEADER)] != _HEADER:
        raise IndexDamaged("index: shared xattrs or a name filter, which Gear does not write")
    return _entries(body, len(_HEADER)), None


def _entry(name: bytes, value: bytes) -> bytes:
    for index, prefix in _PREFIXES.items():
        suffix = name[len(prefix) :]
        if name.startswith(prefix) and bool(suffix) is (index not in _WHOLE_NAMES):
            break
    else:
        raise Unsupported(f"index: an xattr that EROFS cannot hold: {name[:100]!r}")
    if len(suffix) > _MAX_SUFFIX_BYTES or len(value) > _MAX_VALUE_BYTES:
        raise Unsupported(f"index: the xattr {name[:100]!r} is too large")
    entry = _ENTRY.pack(len(suffix), index, len(value)) + suffix + value
    return entry + bytes(-len(entry) % 4)


def _entries(body: bytes, at: int) -> Mapping[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    last = b""
    while at < len(body):
        suffix_size, index, value_size = _ENTRY.unpack_from(body, at)
        middle = at + _ENTRY.size + suffix_size
        end = middle + value_size
        following = end + -end % 4
        prefix = _PREFIXES.get(index)
        if prefix is None or following > len(body) or any(body[end:following]):
            raise IndexDamaged("index: a malformed xattr")
        suffix = body[at + _ENTRY.size : middle]
        name = prefix + suffix
        if bool(suffix) is (index in _WHOLE_NAMES) or b"\0" in suffix or name <= last:
            raise IndexDamaged(f"index: an xattr with an impossible name or place: {name!r}")
        if name.startswith(_OVERLAY):
            raise IndexDamaged(f"index: an xattr meant to steer overlayfs: {name!r}")
        found[name] = body[middle:end]
        last = name
        at = following
    return found


def _digest(shard_path: bytes) -> Digest:
    try:
        return Digest.from_shard_path(shard_path.decode("ascii"))
    except (BadDigest, UnicodeDecodeError) as error:
        raise IndexDamaged(f"index: a redirect to no object: {shard_path!r}") from error


PATH_BYTES = 3 + 1 + 61
_REDIRECT_ENTRY = _entry(_REDIRECT, b"/" + bytes(PATH_BYTES))
CONTENT_PAD = bytes(-(4 + len(_REDIRECT) - len(b"trusted.") + 1 + PATH_BYTES) % 4)
CONTENT_HEAD = (
    _HEADER
    + _entry(_METACOPY, b"")
    + _REDIRECT_ENTRY[: len(_REDIRECT_ENTRY) - PATH_BYTES - len(CONTENT_PAD)]
)

"""
POSIX ACLs as layers carry them, and what unpacking a layer makes of them.

Unpacking sets a file's ACL first and its mode last, so the mode has the last
word on what both of them say; a new file inherits from its directory's
default ACL.  Source: Linux fs/posix_acl.c and
include/uapi/linux/posix_acl_xattr.h (version 2, little-endian: a 32-bit
version, then entries of 16-bit tag, 16-bit permissions, 32-bit id).
Pure functions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from gear_plugin.errors import ArchiveMalformed
from gear_plugin.image.entry import NO_XATTRS

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 0x10, 0x20
_NAMED = (_USER, _GROUP)
_NOBODY = 0xFFFFFFFF
_ALL = 7

_Entry = tuple[int, int, int]


def after_chmod(acl: bytes, mode: int) -> bytes | None:
    """
    The access ACL *acl* of a file that then gets *mode*; None: the mode says it all.

    Raises ArchiveMalformed for what Linux would not set.
    """
    entries = _parsed(acl)
    if not any(tag in _NAMED or tag == _MASK for tag, _, _ in entries):
        return None
    return _encoded(_with_mode(entries, mode))


def default(acl: bytes) -> bytes | None:
    """The default ACL *acl* as it reads once set; None: there is none.  Raises ArchiveMalformed."""
    entries = _parsed(acl)
    return _encoded(entries) if entries else None


def inherited(parents_default: bytes, mode: int, *, directory: bool) -> Mapping[bytes, bytes]:
    """The ACLs, as xattrs, of a new file with *mode* in a directory with that default ACL."""
    access = after_chmod(parents_default, mode)
    found = {} if access is None else {ACCESS: access}
    if directory:
        found[DEFAULT] = parents_default
    return found or NO_XATTRS


def _with_mode(entries: Iterable[_Entry], mode: int) -> list[_Entry]:
    """chmod(2): the group's bits are the mask's where there is one (posix_acl_chmod_masq)."""
    masked = any(tag == _MASK for tag, _, _ in entries)
    bits = {_USER_OBJ: mode >> 6, _MASK if masked else _GROUP_OBJ: mode >> 3, _OTHER: mode}
    return [(tag, bits.get(tag, allowed) & _ALL, who) for tag, allowed, who in entries]


def _parsed(acl: bytes) -> list[_Entry]:
    """The entries; raises ArchiveMalformed unless Linux would take them (posix_acl_valid)."""
    if not acl.startswith(_VERSION) or (len(acl) - len(_VERSION)) % _ENTRY.size:
        raise ArchiveMalformed(f"layer: an ACL that is none: {acl[:20]!r}")
    entries = [
        (tag, allowed, who if tag in _NAMED else _NOBODY)
        for tag, allowed, who in _ENTRY.iter_unpack(acl[len(_VERSION) :])
    ]
    tags = [tag for tag, _, _ in entries]
    named = any(tag in _NAMED for tag in tags)
    once = [tag for tag in tags if tag not in _NAMED]
    wanted = [_USER_OBJ, _GROUP_OBJ, *([_MASK] if named or _MASK in tags else []), _OTHER]
    known = all(
        allowed <= _ALL and not (tag in _NAMED and who == _NOBODY) for tag, allowed, who in entries
    )
    if entries and not (tags == sorted(tags) and once == wanted and known):
        raise ArchiveMalformed(f"layer: an ACL that Linux refuses: {entries}")
    return entries


def _encoded(entries: Iterable[_Entry]) -> bytes:
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)

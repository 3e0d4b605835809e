"""
The list of an image's paths, as `gear inspect --files` shows it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from typing import Any

from gear_plugin.image import Inode, Kind, Tree

_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIR: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\u2028\u2029\ud800-\udfff]")


def show(tree: Tree, *, as_json: bool) -> None:
    """Print every path of *tree*, a line or a JSON object each."""
    if not as_json:
        for line in lines(tree):
            print(line)
        return
    # Entry by entry: a list of 100,000 need not be in memory.
    separator = "[\n"
    for entry in entries(tree):
        print(separator + json.dumps(entry), end="")
        separator = ",\n"
    print("\n]")


def lines(tree: Tree) -> Iterator[str]:
    """As `ls -l` has it, with the digest before the path."""
    for path, inode in tree.walk():
        mode = stat.filemode(_TYPES[inode.kind] | inode.mode)
        size = f"{inode.major},{inode.minor}" if _is_device(inode) else str(inode.size)
        digest = str(inode.digest or "-")
        target = f" -> {_shown(inode.target)}" if inode.target else ""
        yield (
            f"{mode} {inode.uid:>5} {inode.gid:>5} {size:>12} {_when(inode)} {digest:<71} "
            f"/{_shown(path)}{target}"
        )


def entries(tree: Tree) -> Iterator[dict[str, Any]]:
    """One JSON object a path; bytes that are not UTF-8 as surrogate escapes."""
    first: dict[Inode, bytes] = {}
    for path, inode in tree.walk():
        known = first.setdefault(inode, path)
        yield {
            "path": "/" + os.fsdecode(path),
            "type": inode.kind.value,
            "mode": f"{inode.mode:04o}",
            "uid": inode.uid,
            "gid": inode.gid,
            "mtime_ns": inode.mtime_ns,
            "size_bytes": inode.size,
            "digest": str(inode.digest) if inode.digest else None,
            "target": os.fsdecode(inode.target) if inode.target else None,
            "device": [inode.major, inode.minor] if _is_device(inode) else None,
            "same_as": None if known is path else "/" + os.fsdecode(known),
            "xattrs": {
                os.fsdecode(key): base64.b64encode(value).decode()
                for key, value in inode.xattrs.items()
            },
        }


def _when(inode: Inode) -> str:
    """UTC; seconds after `@` where no calendar goes that far."""
    seconds = inode.mtime_ns // 1_000_000_000
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, OSError, ValueError):
        return f"@{seconds}"


def _is_device(inode: Inode) -> bool:
    return inode.kind in (Kind.CHAR, Kind.BLOCK)


def _shown(name: bytes) -> str:
    """One line whatever is in it: odd bytes as `\\xNN`, a backslash doubled."""

    def escaped(match: re.Match[str]) -> str:
        if match[0] == "\\":
            return "\\\\"
        return "".join(f"\\x{byte:02x}" for byte in os.fsencode(match[0]))

    return _UNPRINTABLE.sub(escaped, os.fsdecode(name))

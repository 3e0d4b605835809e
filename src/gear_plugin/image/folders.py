"""
Finding a folder of an image by its path, as a process whose root is the image would.

Links are followed, absolute ones from the image's root, and `..` does not lead
out of it (openat2(2), RESOLVE_IN_ROOT).  Pure: reads a checked index alone.
"""

from __future__ import annotations

import stat
from collections import deque

from gear_plugin.image.erofs_view import ErofsView

_MAX_LINKS = 40
"""As Linux (MAXSYMLINKS)."""


def find_folder(view: ErofsView, path: bytes) -> bytes | None:
    """
    Where the directory *path* of the image is, without links: `/`, or names
    with a `/` before each.  None: there is none.
    """
    names = deque(path.split(b"/"))
    way: list[tuple[bytes, int]] = []
    links = 0
    while names:
        name = names.popleft()
        if name in (b"", b"."):
            continue
        if name == b"..":
            del way[-1:]
            continue
        nid = view.lookup(way[-1][1] if way else view.root, name)
        if nid is None:
            return None
        mode = view.status(nid).mode
        if stat.S_ISLNK(mode):
            links += 1
            if links > _MAX_LINKS:
                return None
            target = view.target(nid)
            if target.startswith(b"/"):
                way.clear()
            names.extendleft(reversed(target.split(b"/")))
        elif stat.S_ISDIR(mode):
            way.append((name, nid))
        else:
            return None
    return b"/" + b"/".join(name for name, _ in way)

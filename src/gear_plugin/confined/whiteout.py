"""
How a layer says that something below it is gone.

In a tar (OCI image-spec, layer.md): an empty file `.wh.X` deletes X, and
`.wh..wh..opq` hides everything that its directory holds below.  On disk
(kernel, overlayfs.rst): a 0:0 character device, and the attribute
`trusted.overlay.opaque`.
"""

from __future__ import annotations

import os
import stat

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
AUFS_META = b".wh..wh."
"""Names that only aufs understood; OPAQUE is the one that still means something."""

AUFS_LINKS = b".wh..wh.plnk"
"""But hard links may lead to the files in this folder, which is in no tree."""


def is_aufs_link_target(name: bytes) -> bool:
    """Whether a file of this name is there for hard links to it alone."""
    folder, _, base = name.rpartition(b"/")
    return folder == AUFS_LINKS and not base.startswith(WHITEOUT)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's mark for a deleted name."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: bytes) -> bool:
    """Whether overlayfs hides everything below *directory* in lower layers."""
    try:
        return os.getxattr(directory, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False

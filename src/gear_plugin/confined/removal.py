"""
Removing a directory tree of any depth.

`shutil.rmtree` recurses and holds a descriptor for each level, so a few
thousand nested directories, which a container or a tar can make in a moment,
would be a layer that nothing can remove.  Here the tree is flattened while it
is removed: every directory moves to the top before its turn, so paths stay
short, and neither stack nor descriptors grow.  Nobody else may write in the
tree meanwhile.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator
from typing import AnyStr


def remove_tree(top: AnyStr | os.PathLike[AnyStr]) -> None:
    """Remove the directory *top* with all that is in it; raises FileNotFoundError, OSError."""
    path = os.fsencode(top)
    # Names that neither the tree nor a removal that was broken off can hold.
    token = secrets.token_hex(8)
    numbers = itertools.count()
    while folders := list(_emptied_of_files(path)):
        for folder in folders:
            for inner in list(_emptied_of_files(folder)):
                os.rename(inner, b"%s/.gone-%s-%d" % (path, token.encode(), next(numbers)))
            os.rmdir(folder)
    os.rmdir(path)


def _emptied_of_files(folder: bytes) -> Iterator[bytes]:
    """Unlink all in *folder* but its directories, and give those."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield entry.path
            else:
                os.unlink(entry.path)

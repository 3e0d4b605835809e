"""
A FUSE daemon for the tests: `python fuse_daemon.py MOUNTPOINT PRIVATE SUPPLY INDEX [alone]`

Serves the image of the EROFS file INDEX, `alone` as `gear fs` does; a fetch
links SUPPLY/<path> into PRIVATE/<path>, or fails while SUPPLY lacks it.
Prints "ready".
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.errors import ContentNotFound
from gear_plugin.image import ErofsView, read_erofs
from gear_plugin.rootfs import Filesystem, ImageTrees, LazyTree, OneImage
from gear_plugin.rootfs.fuse import SHARED, serve

IMAGE = "ab" * 32


def main() -> None:
    mountpoint, private, supply, index = (Path(argument) for argument in sys.argv[1:5])
    members = read_erofs(index.read_bytes()).objects()

    def fetch(image: str, digest: Digest) -> None:
        assert image == IMAGE
        target = private / digest.shard_path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(supply / digest.shard_path, target)
        except FileNotFoundError as error:
            raise ContentNotFound(f"{digest} is in no source") from error
        except FileExistsError:
            pass

    def open_object(image: str, digest: Digest) -> int:
        fetch(image, digest)
        return os.open(private / digest.shard_path, os.O_RDONLY)

    view = ErofsView(index.read_bytes())
    trees = ImageTrees(lambda image: view if image == IMAGE else None, open_object)
    tree = LazyTree(lambda image: members if image == IMAGE else None, fetch, trees)
    alone = OneImage(trees, IMAGE)
    served: Filesystem = alone if "alone" in sys.argv else tree
    serve(served, mountpoint, 8, lambda: print("ready", flush=True), options=SHARED)


if __name__ == "__main__":
    main()

"""
A FUSE daemon for the tests: `python fuse_daemon.py MOUNTPOINT PRIVATE SUPPLY OBJECT...`

Serves one image whose objects are OBJECT...; a fetch links SUPPLY/<path> into
PRIVATE/<path>, or fails while SUPPLY lacks it.  Prints "ready".
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.errors import ContentNotFound
from gear_plugin.rootfs import LazyTree
from gear_plugin.rootfs.fuse import serve

IMAGE = "ab" * 32


def main() -> None:
    mountpoint, private, supply = (Path(argument) for argument in sys.argv[1:4])
    members = {Digest.from_hex(argument) for argument in sys.argv[4:]}

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

    tree = LazyTree(lambda image: members if image == IMAGE else None, fetch)
    serve(tree, mountpoint, 8, lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()

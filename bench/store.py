"""
How fast a push stores objects in a directory: `python -m bench.store [FOLDER]`.

Makes 16,000 objects of the sizes of a Python image (up to 256 KiB, a quarter
of them noise), stores them as `gear push` does, and again when all are there.
FOLDER, such as a share, gets a store of its own, which is removed.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

from gear_plugin.content import DirectoryStore
from gear_plugin.digest import Digest
from gear_plugin.jobs import Watch
from gear_plugin.jobs.upload import upload

COUNT = 16_000


class _Silent:
    def step(self, text: str, *, total_bytes: int = 0) -> None:
        pass

    def advance(self, count_bytes: int) -> None:
        pass

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)


def main() -> None:
    """Measure and print."""
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as files, tempfile.TemporaryDirectory(dir=parent) as root:
        objects = _make(Path(files))
        os.sync()
        store = DirectoryStore.create(Path(root) / "store")
        for what in ("all new", "all there"):
            begun_s = time.monotonic()
            done = upload(objects, Path(files), store, Watch(store.name, 600, _Silent()), _Silent())
            seconds = time.monotonic() - begun_s
            print(
                f"{what}: {done.objects / seconds:.0f} objects/s ({seconds:.1f} s, "
                f"{done.object_bytes / 1e6:.0f} MB, {done.new_stored_bytes / 1e6:.0f} MB written)"
            )


def _make(files: Path) -> dict[Digest, int]:
    chance = random.Random(1)
    objects = {}
    for number in range(COUNT):
        size = min(int(chance.lognormvariate(8, 1.5)) + 1, 256 << 10)
        line = b"%d the same words again\n" % number
        noise = chance.randrange(4) == 0
        content = chance.randbytes(size) if noise else (line * (size // len(line) + 1))[:size]
        digest = Digest.of(content)
        path = files / digest.shard_path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        objects[digest] = len(content)
    return objects


if __name__ == "__main__":
    main()

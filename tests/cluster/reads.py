"""
How often the objects of a shared store are opened, and by which process, told
by the kernel (fanotify): the store lies on a filesystem of its own.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gear_plugin.rootfs import is_mount, unmount
from tests.engine.filetrace import OpenTrace


@contextlib.contextmanager
def own_filesystem(folder: Path) -> Iterator[Path]:
    """*folder* as a tmpfs of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_mount(folder):
        unmount(folder, lazy=True)
    subprocess.run(["mount", "-t", "tmpfs", "gear-test-store", str(folder)], check=True)
    try:
        yield folder
    finally:
        unmount(folder, lazy=True)


def reads(trace: OpenTrace) -> Counter[str]:
    """How many processes have opened each object (hex digest)."""
    found: Counter[str] = Counter()
    for _, path in trace.opens():
        head, _, name = path.rpartition("/")
        shard = head.rpartition("/")[2]
        if "/objects/" in path and len(shard) == 3:
            found[shard + name.removesuffix(".zst")] += 1
    return found

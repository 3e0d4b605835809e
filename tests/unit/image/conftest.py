"""Real mounts of EROFS images."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_MS_RDONLY = 1
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def mount_erofs(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """A function that mounts an image and gives its path; all are unmounted at the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    if "erofs" not in Path("/proc/filesystems").read_text():
        subprocess.run(["modprobe", "erofs"], check=False, capture_output=True)
    if "erofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no EROFS")
    mounted: list[Path] = []

    def mount(image: bytes) -> Path:
        file = tmp_path / f"{len(mounted)}.erofs"
        point = tmp_path / f"{len(mounted)}.mounted"
        file.write_bytes(image)
        point.mkdir()
        if _libc.mount(bytes(file), bytes(point), b"erofs", _MS_RDONLY, None) != 0:
            # Before Linux 6.12 only block devices can be mounted.
            assert ctypes.get_errno() == errno.ENOTBLK, os.strerror(ctypes.get_errno())
            subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", file, point], check=True)
        mounted.append(point)
        return point

    yield mount
    for point in mounted:
        assert _libc.umount2(bytes(point), 0) == 0

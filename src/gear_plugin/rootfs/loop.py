"""
Mounting an image file through a loop device.

For kernels that cannot mount EROFS from a file (before 6.12), or that count
such a mount as a stacking level.  The device frees itself with its last user
(LO_FLAGS_AUTOCLEAR), so nothing is left to clean up after a crash.
Source: Linux include/uapi/linux/loop.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

from gear_plugin.errors import MountFailed
from gear_plugin.rootfs import syscalls

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_CONFIG_SIZE = 304
_FLAGS_OFFSET = 4 + 4 + 52
"""struct loop_config: fd, block size, then loop_info64, where lo_flags is at byte 52."""
_MAJOR = 7
_CONTROL, _CONTROL_DEVICE = "/dev/loop-control", os.makedev(10, 237)
_ATTEMPTS = 20
"""Another process may take the free device between asking for it and setting it up."""


def mount_through_loop(image: Path, target: Path, fstype: str) -> None:
    """Mount *image* read-only on *target* through a free loop device; raises MountFailed."""
    device, held = _attach(image)
    try:
        syscalls.mount(device, target, fstype, syscalls.MS_RDONLY | syscalls.MS_NODEV)
    finally:
        os.close(held)


def _attach(image: Path) -> tuple[str, int]:
    """A configured device's path, and an open descriptor that keeps it until it is mounted."""
    backing = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        control = os.open(_node(_CONTROL, _CONTROL_DEVICE), os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(_ATTEMPTS):
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
                device = _node(f"/dev/loop{number}", os.makedev(_MAJOR, number))
                held = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(held, _LOOP_CONFIGURE, _configuration(backing))
                except OSError as error:
                    os.close(held)
                    if error.errno != errno.EBUSY:
                        raise
                else:
                    return device, held
        finally:
            os.close(control)
    except OSError as error:
        raise MountFailed(f"cannot set up a loop device for {image}: {error.strerror}") from error
    finally:
        os.close(backing)
    raise MountFailed(f"no loop device stayed free long enough for {image}")


def _configuration(backing: int) -> bytes:
    config = bytearray(_CONFIG_SIZE)
    struct.pack_into("=I", config, 0, backing)
    struct.pack_into("=I", config, _FLAGS_OFFSET, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
    return bytes(config)


def _node(path: str, device: int) -> str:
    """The device's path; a container's /dev has no udev, so make the node if it is missing."""
    if not Path(path).exists():
        kind = stat.S_IFCHR if path == _CONTROL else stat.S_IFBLK
        os.mknod(path, 0o600 | kind, device)
    return path

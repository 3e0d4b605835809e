"""
The kernel: what it can do, which way of mounting that gives, and FUSE.
"""

from __future__ import annotations

import importlib
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gear_plugin.errors import MountFailed
from gear_plugin.jobs.doctor.finding import Finding, fix, ok, skip, warn
from gear_plugin.rootfs import Plan, Way, hide_mounts, kernel_features, probe

_EROFS = ("EROFS from a file", "EROFS from a loop device")
_ANY_KERNEL = "not needed: another way of mounting does without"
_AS_ROOT = "run it as root"


def check_features(root: Path) -> Iterator[Finding]:
    """The kernel's version, and a line for each feature that Gear can use."""
    yield ok("kernel", f"{platform.system()} {platform.release()} {platform.machine()}")
    if os.geteuid():
        yield skip("kernel features", "only root can try mounts", _AS_ROOT)
        return
    hide_mounts()
    with _scratch(root) as scratch:
        found = {feature.name: feature for feature in kernel_features(scratch)}
    for name, feature in found.items():
        if not feature.refusal:
            yield ok(name, f"works (in Linux since {feature.since.removeprefix('Linux ')})")
        elif name == "overlayfs":
            yield fix(name, feature.refusal, "modprobe overlay, or use a kernel that has it")
        elif name in _EROFS and any(not found[other].refusal for other in _EROFS):
            yield ok(name, f"not here ({feature.since}); the other way of EROFS is enough")
        else:
            yield warn(name, feature.refusal, f"{feature.since} has it; {_ANY_KERNEL}")


def check_way(root: Path, wanted: str) -> Iterator[Finding]:
    """The way of mounting that the driver would take, and why."""
    check = "way of mounting"
    if os.geteuid():
        yield skip(check, "only root can try mounts", _AS_ROOT)
        return
    hide_mounts()
    with _scratch(root) as scratch:
        try:
            plan = probe(scratch, wanted)
        except MountFailed as error:
            remedy = (
                "use a newer kernel" if wanted == "auto" else "set mount_way=auto, or another way"
            )
            yield fix(check, str(error), remedy)
            return
    index = "" if plan.way is Way.FUSE_TREE else _index_mount(plan)
    yield ok(check, f"{plan.way}{index}: {_why(plan, wanted)}")


def _index_mount(plan: Plan) -> str:
    return " (index through a loop device)" if plan.loop_index else " (index from its file)"


def _why(plan: Plan, wanted: str) -> str:
    others = [str(way) for way in plan.available if way is not plan.way]
    also = f"; {', '.join(others)} would work too" if others else ""
    if wanted != "auto":
        return f"mount_way says so{also}"
    refused = [
        refusal
        for refusal in plan.refusals
        if not any(refusal.startswith(str(way)) for way in plan.available)
    ]
    if refused:
        return f"the best that works here ({' | '.join(refused)}){also}"
    return f"the best there is{also}"


def check_fuse(device: Path = Path("/dev/fuse")) -> Iterator[Finding]:
    """The device, and the library that speaks to it."""
    try:
        is_device = stat.S_ISCHR(device.stat().st_mode)
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        found = (
            ok("FUSE device", f"{device} can be opened")
            if is_device
            else fix("FUSE device", f"{device} is no device", "remove it, then modprobe fuse")
        )
    except FileNotFoundError:
        found = fix("FUSE device", f"there is no {device}", "modprobe fuse")
    except PermissionError as error:
        found = skip("FUSE device", f"{device}: {error.strerror}", _AS_ROOT)
    except OSError as error:
        found = fix("FUSE device", f"{device}: {error.strerror}", "modprobe fuse")
    yield found
    try:
        # By its name: it would load libfuse into every process that runs a job.
        llfuse = importlib.import_module("llfuse")
    except ImportError as error:
        yield fix("FUSE library", str(error), "apt-get install libfuse2; pip install llfuse")
    else:
        yield ok("FUSE library", f"libfuse and llfuse {getattr(llfuse, '__version__', '')}".strip())


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A folder on the filesystem where Gear's main folder is, or will be."""
    near = root
    while not near.is_dir():
        near = near.parent
    with tempfile.TemporaryDirectory(prefix=".gear-doctor-", dir=near) as folder:
        yield Path(folder)

"""
What this kernel can do of that which Gear builds on, found out by trying.

For people who ask why Gear mounts one way and not another; `overlay.probe`
alone decides.  Everything is mounted below a scratch folder and unmounted
again; to be sure that a killed process leaves no mount either, call
`hide_mounts` first, in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.errors import MountFailed
from gear_plugin.image import Tree, write_erofs
from gear_plugin.rootfs import syscalls
from gear_plugin.rootfs.overlay import mount_index

_CLONE_NEWNS = 0x20000


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that some kernels have; `refusal`: why this one has not, empty if it has."""

    name: str
    since: str
    """The first version of Linux that has it, unless it was configured out."""
    refusal: str


def hide_mounts() -> None:
    """
    Let nobody outside this process see what it mounts from now on; raises MountFailed.

    Its mounts go with it, whatever ends it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) < 0:
        code = ctypes.get_errno()
        raise MountFailed(f"no mount namespace of its own: {os.strerror(code)}")
    syscalls.mount("none", Path("/"), "none", syscalls.MS_REC | syscalls.MS_PRIVATE)


def kernel_features(scratch: Path) -> Iterator[Feature]:
    """
    Try each feature below the folder *scratch*, which is made and removed again.

    As root.  What cannot be tried at all is an OSError.
    """
    with _folder(scratch) as base:
        for name, since, attempt in _ATTEMPTS:
            folder = base / since.replace(" ", "-") / name.replace(" ", "-")
            folder.mkdir(parents=True)
            target = folder / "target"
            target.mkdir()
            try:
                attempt(folder, target)
                refusal = ""
            except MountFailed as error:
                refusal = str(error).replace(f" on {target}", "")
            finally:
                with contextlib.suppress(MountFailed):
                    syscalls.unmount(target, lazy=True)
            yield Feature(name, since, refusal)


def _overlay(folder: Path, target: Path) -> None:
    _by_string(folder, target, data=False)


def _data_layers(folder: Path, target: Path) -> None:
    _by_string(folder, target, data=True)


def _by_string(folder: Path, target: Path, *, data: bool) -> None:
    """The old way of mounting, which every kernel takes."""
    lower, other, upper, work = (folder / name for name in ("lower", "other", "upper", "work"))
    for path in (lower, other, upper, work):
        path.mkdir()
    options = [("metacopy", "on"), ("redirect_dir", "follow")] if data else []
    lowers, layers = ([lower], [other]) if data else ([lower, other], [])
    ends = (None, None) if data else (upper, work)
    syscalls.mount_overlay_by_string(target, options, lowers, layers, *ends)


def _mount_api(folder: Path, target: Path) -> None:
    syscalls.mount_options("tmpfs", target, [("size", "4096")])


def _lowerdir_option(folder: Path, target: Path) -> None:
    del folder, target
    if not syscalls.has_lowerdir_option():
        raise MountFailed("overlayfs does not know the option")


def _erofs_file(folder: Path, target: Path) -> None:
    _erofs(folder, target, loop=False)


def _erofs_loop(folder: Path, target: Path) -> None:
    _erofs(folder, target, loop=True)


def _erofs(folder: Path, target: Path, *, loop: bool) -> None:
    index = folder / "index.erofs"
    index.write_bytes(write_erofs(Tree()))
    mount_index(index, target, loop=loop)


_ATTEMPTS: tuple[tuple[str, str, Callable[[Path, Path], None]], ...] = (
    ("overlayfs", "Linux 3.18", _overlay),
    ("data-only layers", "Linux 6.5", _data_layers),
    ("mount API", "Linux 5.2", _mount_api),
    ("lowerdir+", "Linux 6.7", _lowerdir_option),
    ("EROFS from a file", "Linux 6.12", _erofs_file),
    ("EROFS from a loop device", "Linux 5.15", _erofs_loop),
)


@contextlib.contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    is_new = not scratch.exists()
    scratch.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="features-", dir=scratch))
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):
                scratch.rmdir()

"""
The Linux calls that Python does not have: mounts, new mount API, statfs.

Foreign errors are translated here: every function raises MountFailed with
the kernel's own words where it gives some (an fscontext keeps a log that
read(2) returns), so that the message says which option was wrong.

Sources: mount(2), umount(2), fsopen(2) as in include/uapi/linux/mount.h and
arch/x86/entry/syscalls/syscall_64.tbl (the same numbers on every
architecture that Debian supports).  ctypes releases the interpreter lock
around each call.  Thread-safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from gear_plugin.errors import MountFailed

_libc = ctypes.CDLL(None, use_errno=True)

_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_CLOEXEC = 0x1
_AT_FDCWD = -100

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x2, 0x4, 0x1000, 0x4000, 1 << 18
MNT_DETACH = 0x2

Option = tuple[str, str | None]
"""One mount option: a key with its value, or a flag with None."""


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise MountFailed(f"{what}: {os.strerror(code)}") from OSError(code, os.strerror(code))
    return result


def _log_of(context: int) -> str:
    """The kernel's messages on a failed fscontext, joined; empty if it has none."""
    lines = []
    with contextlib.suppress(OSError):
        while line := os.read(context, 4096):
            lines.append(line.decode(errors="replace").strip())
    return "; ".join(lines)


def mount_options(fstype: str, target: Path, options: Iterable[Option], *, flags: int = 0) -> None:
    """
    Mount *fstype* on *target*, giving each option by a call of its own.

    One at a time, options have no separator and no page limit: paths may
    hold `:` and `,`, and an overlay may have as many layers as the kernel
    takes (500).  *flags* are MOUNT_ATTR_* bits.  Raises MountFailed.
    """
    context = _created(fstype, options, str(target))
    try:
        mounted = _check(
            _libc.syscall(_FSMOUNT, context, _CLOEXEC, flags), f"cannot mount {fstype} on {target}"
        )
    finally:
        os.close(context)
    try:
        _check(
            _libc.syscall(
                _MOVE_MOUNT, mounted, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH
            ),
            f"cannot attach the {fstype} mount to {target}",
        )
    finally:
        os.close(mounted)


def try_options(fstype: str, options: Iterable[Option]) -> None:
    """Have the kernel open *fstype* as `mount_options` would, and mount nothing; MountFailed."""
    os.close(_created(fstype, options, "nothing"))


def _created(fstype: str, options: Iterable[Option], target: str) -> int:
    """A context that holds an open filesystem which is mounted nowhere yet."""
    context = _check(
        _libc.syscall(_FSOPEN, fstype.encode(), _CLOEXEC), f"cannot open filesystem {fstype}"
    )
    try:
        for key, value in options:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            raw = None if value is None else os.fsencode(value)
            _configure(context, command, key.encode(), raw, f"{fstype} option {key}={value}")
        _configure(context, _FSCONFIG_CMD_CREATE, None, None, f"cannot mount {fstype} on {target}")
    except BaseException:
        os.close(context)
        raise
    return context


def _configure(
    context: int, command: int, key: bytes | None, value: bytes | None, what: str
) -> None:
    result = _libc.syscall(_FSCONFIG, context, command, key, value, 0)
    if result < 0:
        code = ctypes.get_errno()
        said = _log_of(context) or os.strerror(code)
        raise MountFailed(f"{what}: {said}") from OSError(code, os.strerror(code))


@functools.cache
def has_lowerdir_option() -> bool:
    """
    Whether overlayfs takes its layers one option each (`lowerdir+`, Linux 6.7).

    Before Linux 6.5 overlayfs has the mount API only in name: every option is
    noted, and refused when all are known.  So it is asked for one that no
    kernel has, too.
    """
    return _takes_layer(b"lowerdir+") and not _takes_layer(b"lowerdir+no-kernel-has-this")


def _takes_layer(option: bytes) -> bool:
    context = _check(_libc.syscall(_FSOPEN, b"overlay", _CLOEXEC), "cannot open filesystem overlay")
    try:
        result = _libc.syscall(_FSCONFIG, context, _FSCONFIG_SET_STRING, option, b"/", 0)
        return bool(result == 0)
    finally:
        os.close(context)


def mount_overlay_by_string(
    target: Path,
    options: Iterable[Option],
    lowers: Iterable[Path],
    data: Iterable[Path],
    upper: Path | None,
    work: Path | None,
) -> None:
    """
    Mount an overlay the old way, with every option in one string; raises MountFailed.

    The string ends at a page (4,095 bytes) and takes `:` and `,` for
    separators, so layers are named by descriptors: `/proc/self/fd/<n>` and
    its separator are 20 bytes, 130 layers 2,600.
    """
    with contextlib.ExitStack() as opened:

        def name(path: Path) -> str:
            try:
                handle = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise MountFailed(
                    f"cannot mount overlay on {target}: {path}: {error.strerror}"
                ) from error
            opened.callback(os.close, handle)
            return f"/proc/self/fd/{handle}"

        words = [f"{key}={value}" for key, value in options if key != "source"]
        # Linux 6.5: data-only layers come last, each behind two colons.
        layers = ":".join(map(name, lowers)) + "".join(f"::{name(layer)}" for layer in data)
        words.append(f"lowerdir={layers}")
        if upper is not None and work is not None:
            words += [f"upperdir={name(upper)}", f"workdir={name(work)}"]
        mount("gear", target, "overlay", data=",".join(words))


def mount(source: str, target: Path, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2); raises MountFailed."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), fstype.encode(), flags, data.encode() or None
    )
    _check(result, f"cannot mount {fstype} on {target}")


def bind_folder(top: Path, folder: bytes, target: Path) -> None:
    """
    Show the directory *folder* of the tree below *top* on *target* as well.

    *folder* is names with a `/` before each; a link among them is refused, so
    nothing outside *top* can be shown.  Raises MountFailed.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as opened:
        try:
            handle = os.open(top, flags)
            opened.callback(os.close, handle)
            for name in folder.split(b"/"):
                if name:
                    handle = os.open(name, flags, dir_fd=handle)
                    opened.callback(os.close, handle)
        except OSError as error:
            shown = os.fsdecode(folder)
            raise MountFailed(f"cannot show {shown!r} on {target}: {error.strerror}") from error
        mount(f"/proc/self/fd/{handle}", target, "none", MS_BIND)


def unmount(target: Path, *, lazy: bool = False) -> None:
    """umount2(2); lazy: detach now, free when the last user goes.  Raises MountFailed."""
    _check(
        _libc.umount2(os.fsencode(target), MNT_DETACH if lazy else 0), f"cannot unmount {target}"
    )


def mounts() -> Iterator[tuple[Path, str]]:
    """Every mount of this namespace as (mount point, filesystem type), in mount order."""
    text = Path("/proc/self/mountinfo").read_text()
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        yield _unescaped(before.split()[4]), after.split()[0]


def mount_sources() -> Iterator[tuple[Path, str]]:
    """Every mount of this namespace as (mount point, what is mounted there), in mount order."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        yield _unescaped(before.split()[4]), after.split()[1]


def is_mount(target: Path) -> bool:
    """
    Whether something is mounted exactly on *target*.

    Read from the kernel's list, so it never touches the filesystem that is
    mounted there, which may hang or be dead.
    """
    return any(point == target for point, _ in mounts())


def _unescaped(point: str) -> Path:
    """A path as mountinfo writes it, blanks and the like as octal."""
    return Path(os.fsdecode(point.encode().decode("unicode_escape").encode("latin-1")))

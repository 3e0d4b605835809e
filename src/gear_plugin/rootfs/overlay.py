"""
How a container's tree appears under a path: one overlay, put together in one
of three ways.

    direct      one overlay: upper, ordinary layers, index (EROFS), data layers
    nested      a read-only overlay per image (index + data layers), mounted
                once; the container's plain overlay stands on it
    fuse-tree   the image's whole tree, as the FUSE daemon shows it, is the
                lowest layer of a plain overlay

`probe` finds out by really mounting a tiny image which ways this kernel has.
Kernel facts: Documentation/filesystems/overlayfs.rst, "Metadata only copy up"
and "Data-only lower layers"; docs/decisions/0003-mount-ways.md says what was
measured.  Every function may block in the kernel when a FUSE layer hangs;
callers hold no lock that others need.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.errors import MountFailed
from gear_plugin.image import Inode, Kind, Tree, write_erofs
from gear_plugin.rootfs import syscalls
from gear_plugin.rootfs.loop import mount_through_loop

log = logging.getLogger(__name__)

# Stated on every mount, because distributions build kernels with other
# defaults.  redirect_dir=off and metacopy=off keep everything that is written
# in the upper directory complete and at its own path, so that commit and diff
# can read it without the layers below; a metacopy upper would make a commit
# save files of zeros.  xino=on gives files and directories one st_dev, or
# `tar --one-file-system` and `du -x` would skip every file of the image.
_PLAIN: tuple[syscalls.Option, ...] = (
    ("source", "gear"),
    ("redirect_dir", "off"),
    ("metacopy", "off"),
    ("index", "off"),
    ("xino", "on"),
)
# The nested view has no upper, so metacopy=on can write nothing.  xino=off
# leaves the upper bits of its inode numbers to the overlay above.
_VIEW: tuple[syscalls.Option, ...] = (
    ("source", "gear"),
    ("redirect_dir", "follow"),
    ("metacopy", "on"),
    ("index", "off"),
    ("xino", "off"),
)


class Way(StrEnum):
    """A way of mounting a Gear image."""

    DIRECT = "direct"
    NESTED = "nested"
    FUSE_TREE = "fuse-tree"


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What this kernel can do: the way in use, and how an index file is mounted.

    `refusals` has a line for each way that does not work, with the kernel's reason.
    """

    way: Way
    loop_index: bool
    available: tuple[Way, ...]
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """An image as mount layers: its mounted index and where its objects are looked up."""

    index: Path
    data: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """
    One tree to mount.

    `lowers` are ordinary layers, topmost first; `view` is the Gear image
    below them, or the path where its whole tree is shown.  Without
    `upper` the mount is read-only, and needs at least two layers.
    """

    lowers: tuple[Path, ...]
    view: View | Path | None = None
    upper: Path | None = None
    work: Path | None = None


def mount_stack(target: Path, stack: Stack) -> None:
    """Mount *stack* on *target*; raises MountFailed."""
    lowers = list(stack.lowers)
    data: tuple[Path, ...] = ()
    match stack.view:
        case View(index=index, data=data):
            lowers.append(index)
        case Path():
            lowers.append(stack.view)
    _mount_overlay(target, _PLAIN, lowers, data, stack.upper, stack.work)


def mount_view(target: Path, view: View) -> None:
    """Mount the read-only overlay of one image that the nested way stands on."""
    _mount_overlay(target, _VIEW, [view.index], view.data, None, None)


def is_upper_in_use(upper: Path, scratch: Path) -> bool:
    """
    Whether a living overlay anywhere on this machine writes to *upper*, mounted
    here or not: one that a running container has kept counts as well.

    The kernel marks the upper directories of living overlays and, with
    index=on, refuses to take one for another overlay's layer
    (fs/overlayfs/super.c, ovl_report_in_use; Linux 5.3).  *upper* is offered as
    a lower layer, so nothing in it changes.  *scratch* is an empty folder on
    the same filesystem.  Raises MountFailed.
    """
    other, work, target = (scratch / name for name in ("upper", "work", "merged"))
    for path in (other, work, target):
        path.mkdir(exist_ok=True)
    options: list[syscalls.Option] = [("source", "gear"), ("index", "on")]
    try:
        if syscalls.has_lowerdir_option():
            # Read-only, or letting go of it would flush the whole filesystem.
            layers = (("lowerdir+", upper), ("upperdir", other), ("workdir", work))
            named = [(name, str(path)) for name, path in layers]
            syscalls.try_options("overlay", [*options, ("ro", None), *named])
        else:
            syscalls.mount_overlay_by_string(target, options, [upper], (), other, work)
            syscalls.unmount(target, lazy=True)
    except MountFailed as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY:
            return True
        raise
    return False


def clear_scratch(scratch: Path) -> None:
    """Unmount and remove what a `probe` below *scratch* that was killed has left."""
    for point, _ in list(syscalls.mounts())[::-1]:
        if scratch in point.parents:
            with contextlib.suppress(MountFailed):
                syscalls.unmount(point, lazy=True)
    shutil.rmtree(scratch, ignore_errors=True)


def _mount_overlay(
    target: Path,
    options: Sequence[syscalls.Option],
    lowers: Sequence[Path],
    data: Sequence[Path],
    upper: Path | None,
    work: Path | None,
) -> None:
    if not syscalls.has_lowerdir_option():
        syscalls.mount_overlay_by_string(target, options, lowers, data, upper, work)
        return
    listed: list[syscalls.Option] = [*options]
    listed += [("lowerdir+", str(lower)) for lower in lowers]
    listed += [("datadir+", str(layer)) for layer in data]
    if upper is not None:
        listed += [("upperdir", str(upper)), ("workdir", str(work))]
    syscalls.mount_options("overlay", target, listed)


def mount_index(index_file: Path, target: Path, *, loop: bool) -> None:
    """
    Mount the EROFS image *index_file*, read-only; raises MountFailed.

    Without *loop* the kernel reads the file itself (Linux 6.12+).
    """
    if loop:
        mount_through_loop(index_file, target, "erofs")
    else:
        syscalls.mount(str(index_file), target, "erofs", syscalls.MS_RDONLY | syscalls.MS_NODEV)


def probe(scratch: Path, forced: str = "auto") -> Plan:
    """
    Find out, by mounting a tiny image below *scratch*, what this kernel can do.

    Raises MountFailed when *forced* (or, with `auto`, every way) is refused,
    with the kernel's reason for each.
    """
    refusals = []
    found: dict[Way, bool] = {}
    for way in Way:
        for loop in (False, True) if way is not Way.FUSE_TREE else (False,):
            try:
                _try_mount(scratch, way, loop=loop)
            except (MountFailed, OSError) as error:
                refusals.append(f"{way}{' over a loop device' if loop else ''}: {error}")
                continue
            found[way] = loop
            break
    wanted = list(found) if forced == "auto" else [way for way in found if way == forced]
    if not wanted:
        asked = "no way of mounting Gear images works" if forced == "auto" else f"{forced} does not"
        raise MountFailed(f"{asked} on this kernel ({' | '.join(refusals)})")
    for refusal in refusals:
        log.info("not available: %s", refusal)
    return Plan(wanted[0], found[wanted[0]], tuple(found), tuple(refusals))


def _try_mount(scratch: Path, way: Way, *, loop: bool) -> None:
    content = b"gear"
    tree = Tree()
    tree.root.children[b"file"] = Inode(
        Kind.FILE, 0o644, 0, 0, 0, size=len(content), digest=Digest.of(content)
    )
    with _scratch_mounts(scratch) as (base, merged, view_dir, index_dir):
        (base / "index.erofs").write_bytes(write_erofs(tree))
        shard_path = base / "data" / Digest.of(content).shard_path
        shard_path.parent.mkdir(parents=True)
        shard_path.write_bytes(content)
        view: View | Path = View(index_dir, (base / "data",))
        if way is Way.FUSE_TREE:
            # Whether FUSE works is for its daemon to find out; any other
            # folder stands for the tree that it will show.
            (view_dir / "file").write_bytes(content)
            view = view_dir
        else:
            mount_index(base / "index.erofs", index_dir, loop=loop)
        if way is Way.NESTED:
            mount_view(view_dir, View(index_dir, (base / "data",)))
            view = view_dir
        stack = Stack(lowers=(), view=view, upper=base / "upper", work=base / "work")
        mount_stack(merged, stack)
        if (merged / "file").read_bytes() != content:
            raise MountFailed("the kernel showed wrong content through a data-only layer")


@contextlib.contextmanager
def _scratch_mounts(scratch: Path) -> Iterator[tuple[Path, Path, Path, Path]]:
    scratch.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="probe-", dir=scratch))
    points = [base / name for name in ("merged", "view", "index")]
    for name in ("data", "upper", "work", *[point.name for point in points]):
        (base / name).mkdir()
    try:
        yield base, *points  # type: ignore[misc]  # a list of known length
    finally:
        for point in points:
            with contextlib.suppress(MountFailed):
                syscalls.unmount(point, lazy=True)
        shutil.rmtree(base, ignore_errors=True)

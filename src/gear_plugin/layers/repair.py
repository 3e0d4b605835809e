"""
What a start of the graphdriver does about the end of the one before it.

docs/crash-windows.md lists the steps of every operation, and what each leaves
behind when it is cut off there.  Nothing else may work on the layers
meanwhile (`owner`), except for the helpers of a killed driver: the process
that unpacked a layer ends a moment after its stream has.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from pathlib import Path

from gear_plugin.confined.removal import remove_tree
from gear_plugin.durable import TEMP_PREFIX
from gear_plugin.errors import LayerNotFound, MountFailed
from gear_plugin.layers import held
from gear_plugin.layers.images import NodeImages
from gear_plugin.layers.in_use import mounted_images
from gear_plugin.layers.keepers import ImageKeepers, ImageViews
from gear_plugin.layers.record import LayerFolder
from gear_plugin.rootfs import is_mount, mounts, unmount

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
_POLL_S = 0.1
_HEX = re.compile(r"[0-9a-f]{64}\Z")


def half_made(folder: Path) -> Path:
    """A new name in *folder* for something on its way out, which a start removes."""
    return folder / (TEMP_PREFIX + secrets.token_hex(8))


def repair(root: Path, images: NodeImages, views: ImageViews, keepers: ImageKeepers) -> None:
    """
    Remove half-made layers and what finished ones have left over, notes of users
    that are gone, images that nobody keeps any more, and views that nothing
    stands on.
    """
    mounted = {point for point, _ in mounts()}
    for entry in sorted((root / "containers").iterdir()):
        folder = LayerFolder(entry)
        if entry.name.startswith(TEMP_PREFIX) or folder.applying.exists():
            _remove_half_made(folder, images, keepers)
            continue
        if folder.replaced.exists():
            _drop(images.installed_from(folder.replaced), keepers)
            _remove_tree(folder.replaced)
        if folder.merged not in mounted and _nobody_has(folder):
            held.erase(folder)
    for image in images:
        views.release(image, lambda image=image: image in mounted_images(root))  # type: ignore[misc]
    for name in _private_folders(root):
        if images.objects(name) is None:
            keepers.forget(name)


def _remove_half_made(folder: LayerFolder, images: NodeImages, keepers: ImageKeepers) -> None:
    log.info("removing the half-made layer %s", folder.path.name)
    if is_mount(folder.merged):
        with contextlib.suppress(MountFailed):
            unmount(folder.merged, lazy=True)
    if not folder.path.name.startswith(TEMP_PREFIX):
        # Under another name first, and by its own root: a process that still
        # unpacks into it cannot make the layer anew, nor reach what follows it.
        folder = LayerFolder(folder.path.rename(half_made(folder.path.parent)))
    found = {images.installed_from(folder.applying), images.installed_from(folder.replaced)}
    with contextlib.suppress(LayerNotFound):
        found.add(folder.read().index)
    # The record goes last: what breaks off here is found again.
    for index in found:
        _drop(index, keepers)
    _remove_tree(folder.path)


def _nobody_has(folder: LayerFolder) -> bool:
    """Whether a layer that is not mounted here is mounted nowhere else either."""
    if held.noted(folder) is None:
        return True
    try:
        return held.becomes_free(folder.upper, folder.path.parent, within_s=0)
    except MountFailed as error:
        log.warning("whether layer %s is in use is not known: %s", folder.path.name, error)
        return False


def _drop(index: str | None, keepers: ImageKeepers) -> None:
    if index is not None:
        keepers.drop(index)


def _remove_tree(path: Path) -> None:
    """Remove *path*, from a process that may still be writing in it, too."""
    deadline = time.monotonic() + _PATIENCE_S
    while path.exists():
        try:
            remove_tree(path)
        except OSError as error:
            if time.monotonic() > deadline:
                log.warning("%s stays until the next start: %s", path, error)
                return
            time.sleep(_POLL_S)


def _private_folders(root: Path) -> list[str]:
    try:
        return [entry.name for entry in (root / "private").iterdir() if _HEX.match(entry.name)]
    except FileNotFoundError:
        return []

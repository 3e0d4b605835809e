"""
Having a Gear image on a node by its name, without docker: its index found
wherever it is (`locate`), checked, and installed (`layers.NodeImages`).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence

from gear_plugin.errors import ImageNotFound
from gear_plugin.image import FOLDER, INDEX_NAME, MANIFEST_NAME
from gear_plugin.jobs.locate import IndexSource, locate_index
from gear_plugin.layers import NodeImages
from gear_plugin.names import ImageId

log = logging.getLogger(__name__)

_ATTEMPTS = 3


def take_in(
    images: NodeImages,
    gear_image: ImageId,
    sources: Sequence[IndexSource],
    note: Callable[[str], bool],
) -> str:
    """
    The digest of the index of *gear_image*, which is among *images* afterwards.

    *note* is told the digest before anything is installed, and says whether
    the image is here already.  Raises what `locate_index` and
    `NodeImages.install` raise.
    """
    for _ in range(_ATTEMPTS):
        with images.scratch() as folder:
            located = locate_index(gear_image, sources, folder)
            index = located.manifest.index_digest.hex
            if note(index):
                return index
            layer = folder / "layer"
            (layer / FOLDER).mkdir(parents=True)
            try:
                shutil.copyfile(located.erofs, layer / INDEX_NAME)
                shutil.copyfile(located.manifest_file, layer / MANIFEST_NAME)
            except FileNotFoundError:
                # They were a node's own, and the image left it a moment ago.
                log.info("%s left %s; looking again", gear_image, located.found_in)
                continue
            images.install(layer)
            return index
    raise ImageNotFound(f"{gear_image} comes and goes on this node; try again")

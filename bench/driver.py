"""
Calls to a storage driver on its plugin socket, as dockerd makes them.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.conformance.driver import Driver

LAYER = "be" * 32
"""The id of the layer that is made and removed here; docker gives such to none."""
_CHUNK_BYTES = 1 << 20


def apply_layer(plugin_socket: Path, layer: Path) -> float:
    """Make a layer, apply the tar *layer* to it, remove it; the seconds of the apply alone."""
    driver = Driver(plugin_socket)
    driver.remove(LAYER)
    driver.create(LAYER)
    try:
        with layer.open("rb") as tar:
            begun = time.monotonic()
            driver.apply(LAYER, "", iter(lambda: tar.read(_CHUNK_BYTES), b""))
            return time.monotonic() - begun
    finally:
        driver.remove(LAYER)

"""
Calls to a storage driver on its plugin socket, as dockerd makes them.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

LAYER = "be" * 32
"""The id of the layer that is made and removed here; docker gives such to none."""
_TIMEOUT_S = 120
_CHUNK_BYTES = 1 << 20


def apply_layer(plugin_socket: Path, layer: Path) -> float:
    """Make a layer, apply the tar *layer* to it, remove it; the seconds of the apply alone."""
    call(plugin_socket, "Remove", {"ID": LAYER})
    call(plugin_socket, "Create", {"ID": LAYER, "Parent": ""})
    try:
        with layer.open("rb") as tar:
            chunks = iter(lambda: tar.read(_CHUNK_BYTES), b"")
            begun = time.monotonic()
            _post(plugin_socket, f"/GraphDriver.ApplyDiff?id={LAYER}&parent=", chunks)
            return time.monotonic() - begun
    finally:
        call(plugin_socket, "Remove", {"ID": LAYER})


def call(plugin_socket: Path, name: str, message: dict[str, str]) -> dict[str, object]:
    """`POST /GraphDriver.<name>`; raises AssertionError unless the driver says yes."""
    answer = _post(plugin_socket, f"/GraphDriver.{name}", iter([json.dumps(message).encode()]))
    decoded: dict[str, object] = json.loads(answer)
    return decoded


def _post(plugin_socket: Path, target: str, body: Iterator[bytes]) -> bytes:
    connection = _UnixConnection(plugin_socket)
    try:
        connection.request("POST", target, body=body, encode_chunked=True, headers=_CHUNKED)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, f"{target}: status {answer.status}: {text!r}"
        return text
    finally:
        connection.close()


_CHUNKED = {"Transfer-Encoding": "chunked"}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("plugin", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_S)
        # The path is longer than the 107 bytes that an address holds.
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)

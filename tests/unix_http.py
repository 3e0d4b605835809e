"""HTTP over a unix socket, as dockerd speaks to plugins."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path


class UnixConnection(http.client.HTTPConnection):
    """A connection to the socket *path*, which may be longer than the 107 bytes of an address."""

    def __init__(self, path: Path | str, timeout_s: float) -> None:
        # Docker 24 and later say this host; earlier ones say none.
        super().__init__("plugin.moby.localhost", timeout=timeout_s)
        self._path = Path(path)
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """See http.client."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._timeout_s)
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)

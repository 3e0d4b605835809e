"""
Asking the node's client, over its unix socket (`wire`), from another process.

One `LocalClient` a process is enough: every thread gets a connection of its
own and keeps it, so a request costs one line each way.  Safe from any thread;
not across a fork.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from gear_plugin import wire
from gear_plugin.digest import Digest
from gear_plugin.errors import DaemonUnavailable, TimedOut

_RETRY_S = 0.05


class _Connection:
    """A socket that is closed with the thread that owned it."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __del__(self) -> None:
        self.socket.close()


class LocalClient:
    """
    The client listening on *socket_path*; nothing is opened before the first call.

    Every method waits at most *timeout_s* for the client to answer, and
    raises DaemonUnavailable (it is not running, or refuses), TimedOut, or
    whatever GearError the client answered.  All calls are safe to repeat.

    `fetch` and `admit`, which containers wait for, sit out a restart of the
    client: they fail only when it has been down for *patience_s*, and from
    then on at once.
    """

    def __init__(self, socket_path: Path, timeout_s: float, *, patience_s: float = 0.0) -> None:
        self._path = str(socket_path)
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._down_since_s: float | None = None  # written from any thread; about right is enough
        self._local = threading.local()

    def fetch(self, image: Digest, digest: Digest) -> None:
        """
        Have the object in the public cache and in *image*'s private folder.

        Raises ContentNotFound, ContentCorrupt, SourceUnavailable, TimedOut,
        StorageFull, and ImageNotFound for an image that was not admitted.
        """
        self._ask_patiently({"op": "fetch", "image": image.hex, "object": digest.hex})

    def obtain(self, digest: Digest, size_bytes: int | None = None) -> None:
        """
        Have the object in the public cache, for another node: from the store or
        the manager, pinned for no image.  *size_bytes*: if known.

        Raises as `fetch`.
        """
        message: dict[str, Any] = {"op": "obtain", "object": digest.hex}
        if size_bytes is not None:
            message["size"] = size_bytes
        self._ask(message)

    def admit(self, image: Digest) -> None:
        """Have *image*'s private folder made; nothing happens if it is there."""
        self._ask_patiently({"op": "admit", "image": image.hex})

    def complete(self, image: Digest) -> None:
        """Have everything that *image* lacks fetched in the background; returns at once."""
        self._ask({"op": "complete", "image": image.hex})

    def forget(self, image: Digest) -> None:
        """Have *image*'s private folder removed; nothing happens if it is gone."""
        self._ask({"op": "forget", "image": image.hex})

    def leave(self) -> None:
        """Have this node leave its cluster until the next start; raises also NotFound."""
        self._ask({"op": "leave"})

    def status(self) -> dict[str, Any]:
        """The client's counts, as `wire` describes them."""
        answer = self._ask({"op": "status"})
        del answer["ok"]
        return answer

    def cluster(self) -> dict[str, Any]:
        """This node in its cluster, as `wire` describes it."""
        answer = self._ask({"op": "cluster"})
        del answer["ok"]
        return answer

    def close(self) -> None:
        """Close the calling thread's connection; another call opens a new one."""
        self._local.connection = None

    def _ask_patiently(self, message: dict[str, Any]) -> None:
        while True:
            try:
                self._ask(message)
            except DaemonUnavailable:
                now_s = time.monotonic()
                since_s = self._down_since_s = self._down_since_s or now_s
                if now_s - since_s >= self._patience_s:
                    raise
                time.sleep(_RETRY_S)
            else:
                self._down_since_s = None
                return

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        line = wire.encode(message)
        is_reused = getattr(self._local, "connection", None) is not None
        answer = self._exchange(line)
        if not answer and is_reused:
            # The client was restarted since this thread's last call.
            answer = self._exchange(line)
        if not answer:
            raise DaemonUnavailable(f"the Gear client hung up ({self._path}); see its log")
        decoded = wire.decode(answer)
        wire.raise_failure(decoded)
        return decoded

    def _exchange(self, line: bytes) -> bytes:
        """Send *line*, return the answering line; empty when the client hung up."""
        connection = self._connection()
        try:
            connection.sendall(line)
            answer = connection.recv(wire.MAX_LINE_BYTES)
            while answer and not answer.endswith(b"\n"):
                more = connection.recv(wire.MAX_LINE_BYTES)
                answer = answer + more if more else b""
        except BlockingIOError as error:
            # Its answer may still come; it must not be taken for the next one's.
            self.close()
            raise TimedOut(f"the Gear client did not answer in {self._timeout_s:g} s") from error
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        except BaseException:
            self.close()
            raise
        if not answer:
            self.close()
        return answer

    def _connection(self) -> socket.socket:
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            return connection.socket
        connection = _Connection()
        # The kernel's own time limits: settimeout() would add a poll(2) to
        # each send and receive.
        limit = struct.pack("ll", int(self._timeout_s), int(self._timeout_s % 1 * 1_000_000))
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            connection.socket.connect(self._path)
        except OSError as error:
            raise DaemonUnavailable(
                f"no Gear client on {self._path} ({error.strerror}); is it running?"
            ) from error
        self._local.connection = connection
        return connection.socket

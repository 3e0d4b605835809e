"""
Cutting off peers for which a thread waits too long.

A thread that sends to a peer which does not read, or reads from one which does
not send, is held until the peer likes.  So every second the kernel is asked
how much moved on each connection that has a thread (TCP_INFO, tcp(7)): one
whose thread had to wait longer than its grace, plus what the bytes that moved
take at the lowest rate, is shut down, and its thread gets an error.

Only time in which the peer is what is waited for counts: bytes that it has not
acknowledged, or a read from it.  A thread that waits for a store does not.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

log = logging.getLogger(__name__)

# linux/tcp.h, struct tcp_info: tcpi_unacked (u32) at 24; tcpi_bytes_acked and
# tcpi_bytes_received (u64) at 120 and 128, tcpi_notsent_bytes (u32) at 144.
_TCP_INFO = struct.Struct("=24xI92xQQ8xI")


@dataclass(slots=True, eq=False)
class Held:
    """One connection and what was seen of it; `reading` is set by who reads from it."""

    socket: socket.socket
    reading: bool = False
    waited_s: float = 0.0
    moved_before: int = 0


class Watch:
    """
    Looks at connections from a thread of its own.

    A peer may have *grace_s* of a thread's time for nothing, and beyond it as
    much as what it took and gave needs at *min_bytes_s*.
    """

    def __init__(self, grace_s: float, min_bytes_s: int, *, tick_s: float = 1.0) -> None:
        self._grace_s, self._min_bytes_s, self._tick_s = grace_s, min_bytes_s, tick_s
        self._lock = threading.Lock()
        self._held: set[Held] = set()

    def start(self) -> None:
        """Look from now on, until the process ends."""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    @contextlib.contextmanager
    def holding(self, connection: socket.socket) -> Iterator[Held]:
        """Watch *connection* during the block, in which a thread serves it."""
        held = Held(connection)
        with contextlib.suppress(OSError):
            held.moved_before = _look(connection)[0]
        with self._lock:
            self._held.add(held)
        try:
            yield held
        finally:
            with self._lock:
                self._held.discard(held)

    def _run(self) -> None:
        before_s = time.monotonic()
        while True:
            time.sleep(self._tick_s)
            now_s = time.monotonic()
            self.look(now_s - before_s)
            before_s = now_s

    def look(self, passed_s: float) -> None:
        """Judge every connection; *passed_s* went by since the last look."""
        # Under the lock no thread lets go of a connection, so that none is
        # shut down which serves somebody else by now.
        with self._lock:
            for held in self._held:
                try:
                    moved, is_waiting = _look(held.socket)
                except OSError:
                    continue  # closed by its thread
                if not is_waiting and not held.reading:
                    continue
                held.waited_s += passed_s
                allowed_s = self._grace_s + (moved - held.moved_before) / self._min_bytes_s
                if held.waited_s > allowed_s:
                    self._cut(held)

    def _cut(self, held: Held) -> None:
        doing = "sends" if held.reading else "reads"
        with contextlib.suppress(OSError):
            log.warning("cut off %s, which %s too slowly", held.socket.getpeername()[0], doing)
            # Not SSLSocket's own, which would take the session from under its thread.
            socket.socket.shutdown(held.socket, socket.SHUT_RDWR)


def _look(connection: socket.socket) -> tuple[int, bool]:
    """Bytes that the peer gave or acknowledged, and whether it still has some to acknowledge."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    unacked, acked, received, unsent = _TCP_INFO.unpack_from(info)
    return acked + received, bool(unacked or unsent)

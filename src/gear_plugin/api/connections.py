"""
gunicorn's threaded worker behind a TCP port, where callers may be slow or hostile.

The stock worker gives a thread to a connection before it has said anything.
Here the worker's main loop, which never waits for a peer,

- reads the whole head of a request (and does the TLS handshake) before a thread
  gets it, in `Limits.head_s` at most;
- hands threads out fairly: an address gets another one only while it has
  fewer than are free.  One that wants all ends up with half, and there is always
  one left for who comes next;
- keeps connections that pause between requests, and sees closed ones off;
- drops the connection that has waited longest for its head when there are too many.

A thread that serves a request is freed from peers that do not read or send by
`pace.Watch`.  Everything but `handle` runs in the main loop's thread.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import resource
import selectors
import socket
import ssl
import time
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import ClassVar

from gunicorn import http, sock
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from gear_plugin.api.pace import Held, Watch

log = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 16 * 1024
_END = b"\r\n\r\n"
_READ_BYTES = 16 * 1024
_LINGER_S = 2.0
_LINGER_BYTES = 1 << 20
_COMPLAIN_S = 10.0
_DRAIN_S = 0.05
"""What is left of a body is read this long, then the connection is not used again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a port grants to its callers."""

    connections: int = 1024
    head_s: float = 10.0
    """From the connection, or a request's first byte, to the end of its head."""
    idle_s: float = 30.0
    """Between two requests of one connection."""
    grace_s: float = 10.0
    min_bytes_s: int = 16 * 1024
    """`pace.Watch`; slow lines of honest nodes are faster than this."""
    tick_s: float = 1.0


@dataclass(slots=True)
class _Arrival:
    """A connection whose next request's head is on its way."""

    deadline_s: float
    is_idle: bool
    is_shaken: bool
    head: bytearray
    events: int = 0


class _Unreader(SocketUnreader):  # type: ignore[misc]  # gunicorn is not typed
    """Says when its thread waits for the peer."""

    held: Held | None = None

    def chunk(self, size_hint: int | None = None) -> bytes:
        assert self.held is not None
        self.held.reading = True
        try:
            return bytes(super().chunk(size_hint))
        finally:
            self.held.reading = False


class TcpWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn is not typed
    limits: ClassVar[Limits] = Limits()

    def init_process(self) -> None:
        limits = self.limits
        # Each thread has files open besides its connection.
        self._most = min(limits.connections, _allow_files(limits.connections * 4) // 2)
        # The stock worker would stop accepting; here the longest waiting has to go.
        self.worker_connections = limits.connections * 2
        self._watch = Watch(limits.grace_s, limits.min_bytes_s, tick_s=limits.tick_s)
        self._watch.start()
        self._tls = sock.ssl_context(self.cfg) if self.cfg.is_ssl else None
        self._arriving: dict[TConn, _Arrival] = {}
        self._ready: dict[str, deque[tuple[float, TConn]]] = {}
        self._leaving: dict[TConn, tuple[float, list[int]]] = {}
        self._busy: Counter[str] = Counter()
        self._free = self.cfg.threads
        self._swept_s = 0.0
        self._complained_s, self._refused = -_COMPLAIN_S, 0
        super().init_process()

    # --- arriving -------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        try:
            client, address = listener.accept()
        except OSError as error:
            if not isinstance(error, (BlockingIOError, ConnectionAbortedError)):
                self._complain("a connection", str(error))
                self._drop_eldest()
            return
        self.nr_conns += 1
        if self.nr_conns > self._most:
            self._drop_eldest()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conn = TConn(self.cfg, client, address, listener.getsockname())
        if self._tls is not None:
            try:
                conn.sock = self._tls.wrap_socket(
                    client, server_side=True, do_handshake_on_connect=False
                )
            except OSError:  # gone already
                self._close(conn)
                return
        conn.parser = http.get_parser(self.cfg, conn.sock, address)
        conn.parser.unreader = _Unreader(conn.sock)
        conn.initialized = True
        self._await_head(conn, is_idle=False, is_shaken=self._tls is None)

    def _await_head(self, conn: TConn, *, is_idle: bool, is_shaken: bool) -> None:
        conn.sock.setblocking(False)
        limit_s = self.limits.idle_s if is_idle else self.limits.head_s
        arrival = _Arrival(time.monotonic() + limit_s, is_idle, is_shaken, bytearray())
        self._arriving[conn] = arrival
        # What came behind the last request is not in the socket any more.
        arrival.head += conn.parser.unreader.take_buffered()
        self._advance(conn)

    def _advance(self, conn: TConn, _socket: object = None) -> None:
        """Take what has come, without waiting."""
        arrival = self._arriving[conn]
        try:
            if not arrival.is_shaken:
                conn.sock.do_handshake()
                arrival.is_shaken = True
            while _END not in arrival.head and len(arrival.head) < _MAX_HEAD_BYTES:
                data = conn.sock.recv(_READ_BYTES)
                if not data:
                    self._drop(conn)
                    return
                self._saw_head_begin(arrival)
                arrival.head += data
        except (BlockingIOError, ssl.SSLWantReadError):
            self._listen(conn, arrival, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._listen(conn, arrival, selectors.EVENT_WRITE)
        except OSError as error:
            log.debug("%s left before its request: %s", conn.client[0], error)
            self._drop(conn)
        else:
            self._has_come(conn, arrival)

    def _saw_head_begin(self, arrival: _Arrival) -> None:
        if arrival.is_idle:
            arrival.is_idle = False
            arrival.deadline_s = time.monotonic() + self.limits.head_s

    def _listen(self, conn: TConn, arrival: _Arrival, events: int) -> None:
        if arrival.events == events:
            return
        if arrival.events:
            self.poller.unregister(conn.sock)
        arrival.events = events
        self.poller.register(conn.sock, events, functools.partial(self._advance, conn))

    def _has_come(self, conn: TConn, arrival: _Arrival) -> None:
        self._forget_arrival(conn)
        if _END not in arrival.head:
            self._refuse(conn, "431 Request Header Fields Too Large", "the request's head is long")
            return
        conn.parser.unreader.unread(bytes(arrival.head))
        waiting = self._ready.setdefault(conn.client[0], deque())
        waiting.append((time.monotonic() + self.limits.head_s, conn))
        self._hand_out()

    def _drop_eldest(self) -> None:
        """Of those that keep us waiting for a head; else of those between requests."""
        eldest = next((c for c, a in self._arriving.items() if not a.is_idle), None)
        eldest = eldest or next(iter(self._arriving), None) or next(iter(self._leaving), None)
        if eldest is not None:
            self._drop(eldest)

    # --- served ---------------------------------------------------------------

    def _hand_out(self) -> None:
        """Give free threads to requests that have come, address by address."""
        for address in list(self._ready):
            waiting = self._ready[address]
            while waiting and self._busy[address] < self._free:
                _, conn = waiting.popleft()
                self._busy[address] += 1
                self._free -= 1
                self.enqueue_req(conn)
            if not waiting:
                del self._ready[address]

    def handle(self, conn: TConn) -> object:
        """In a thread: serve the request whose head has come."""
        with self._watch.holding(conn.sock) as held:
            conn.parser.unreader.held = held
            return super().handle(conn)

    def _keepalive_after(self, conn: TConn, keepalive: object) -> bool:
        # The stock worker would wait 5 s here for a body that nobody reads.
        deadline_s = time.monotonic() + _DRAIN_S
        return bool(keepalive and conn.parser.finish_body(deadline=deadline_s))

    def finish_request(self, conn: TConn, future: Future[object]) -> None:
        """The thread is free again."""
        self._free += 1
        address = conn.client[0]
        self._busy[address] -= 1
        if not self._busy[address]:
            del self._busy[address]
        has_failed = future.cancelled() or future.exception() is not None
        if not has_failed and future.result() and self.alive:
            self._await_head(conn, is_idle=True, is_shaken=True)
        else:
            self._leave(conn)
        self._hand_out()

    # --- leaving --------------------------------------------------------------

    def _refuse(self, conn: TConn, status: str, message: str) -> None:
        body = f'{{"error": "Unavailable", "message": "{message}"}}\n'
        answer = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )
        self._complain(conn.client[0], message)
        with contextlib.suppress(OSError):
            conn.sock.setblocking(False)
            conn.sock.send(answer.encode())
        self._leave(conn)

    def _complain(self, whom: str, why: str) -> None:
        """In the log, but a flood of callers must not become one of lines."""
        self._refused += 1
        now_s = time.monotonic()
        if now_s - self._complained_s >= _COMPLAIN_S:
            log.warning("refused %d times, the last time %s: %s", self._refused, whom, why)
            self._complained_s, self._refused = now_s, 0

    def _leave(self, conn: TConn) -> None:
        """
        Close for writing, and altogether when the peer has (RFC 9112, 9.6):
        closing with bytes unread would take back the answer that was just sent.
        """
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self.poller.register(
                conn.sock, selectors.EVENT_READ, functools.partial(self._drain, conn)
            )
        except (OSError, ValueError):  # the thread closed it
            self._close(conn)
        else:
            self._leaving[conn] = (time.monotonic() + _LINGER_S, [_LINGER_BYTES])

    def _drain(self, conn: TConn, _socket: object) -> None:
        left = self._leaving[conn][1]
        try:
            data = conn.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        left[0] -= len(data)
        if not data or left[0] <= 0:
            self._drop(conn)

    def murder_pending(self) -> None:
        """Called in each turn of the loop, once a second at least: drop who is over its time."""
        now_s = time.monotonic()
        if now_s - self._swept_s < self.limits.tick_s / 4 and self.alive:
            return
        self._swept_s = now_s
        for conn, arrival in list(self._arriving.items()):
            if now_s > arrival.deadline_s or (arrival.is_idle and not self.alive):
                self._drop(conn)
        for conn, (deadline_s, _) in list(self._leaving.items()):
            if now_s > deadline_s:
                self._drop(conn)
        for address, waiting in list(self._ready.items()):
            while waiting and now_s > waiting[0][0]:
                self._refuse(waiting.popleft()[1], "503 Service Unavailable", "too many requests")
            if not waiting:
                del self._ready[address]

    def _drop(self, conn: TConn) -> None:
        self._forget_arrival(conn)
        if self._leaving.pop(conn, None):
            self.poller.unregister(conn.sock)
        self._close(conn)

    def _forget_arrival(self, conn: TConn) -> None:
        arrival = self._arriving.pop(conn, None)
        if arrival is not None and arrival.events:
            self.poller.unregister(conn.sock)

    def _close(self, conn: TConn) -> None:
        self.nr_conns -= 1
        with contextlib.suppress(OSError):
            conn.sock.close()


def tcp_worker(limits: Limits) -> type[TcpWorker]:
    """The worker class with these limits: gunicorn makes the worker, from its class alone."""
    return type("LimitedTcpWorker", (TcpWorker,), {"limits": limits})


def _allow_files(count: int) -> int:
    """Have *count* files allowed, or as many as this process may allow itself; how many are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        soft = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return count if soft == resource.RLIM_INFINITY else soft

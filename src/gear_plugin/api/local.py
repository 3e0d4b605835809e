"""
The client's unix socket: `wire`'s local requests, answered by its collaborators.

One thread a connection, because callers keep their connections and each of
them waits for one answer at a time.  The socket is mode 0600 and its folder
is root's: who can connect may do everything.

Every 5 minutes, and at the end, the cache's checkpoint is taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from gear_plugin import wire
from gear_plugin.content import Cache, Completer, Fetcher, LocalClient, Starts
from gear_plugin.digest import Digest
from gear_plugin.errors import BadRequest, Conflict, DaemonUnavailable, GearError, NotFound

log = logging.getLogger(__name__)

# The FUSE daemon's threads (64 by default, at most 512 by setting, of which
# it keeps one connection each) and a few of the graphdriver's.
_MAX_CONNECTIONS = 640
_CHECKPOINT_S = 300.0
_PROBE_S = 2.0


class Cluster(Protocol):
    """This node's place in a cluster; `jobs.joined.Joined`."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def leave(self) -> None: ...
    def status(self) -> dict[str, Any]: ...


class LocalServer:
    """
    Answers on *socket_path*; *objects_of* lists an image's objects (for `complete`).
    *starts* is told what is mounted and opened.  *cluster* runs as long as `serve`
    does; None: the node is on its own.

    The folder of the socket must exist.
    """

    def __init__(
        self,
        socket_path: Path,
        fetcher: Fetcher,
        cache: Cache,
        objects_of: Callable[[Digest], Iterable[Digest]],
        starts: Starts | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self._path = socket_path
        self._fetcher = fetcher
        self._cache = cache
        self._completer = Completer(fetcher, objects_of)
        self._starts = starts
        self._cluster = cluster
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None

    def serve(self) -> None:
        """
        Listen and answer until `stop`, then take the cache's checkpoint.

        Raises Conflict when another client answers on the socket already; a
        socket that a dead one left is replaced.
        """
        self._listener = listener = _listen(self._path)
        threading.Thread(target=self._keep_checkpoints, daemon=True).start()
        if self._cluster is not None:
            self._cluster.start()
        log.info("listening on %s", self._path)
        try:
            while not self._stopping.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError as error:
                    if self._stopping.is_set():
                        break
                    # Out of descriptors or memory; both pass.
                    log.warning("cannot accept a connection: %s", error)
                    self._stopping.wait(0.1)
                    continue
                self._take(connection)
        finally:
            self._path.unlink(missing_ok=True)
            listener.close()
            self._completer.stop_all()
            if self._starts is not None:
                self._starts.stop()
            if self._cluster is not None:
                self._cluster.stop()
            self._take_checkpoint()
            log.info("stopped")

    def stop(self) -> None:
        """Have `serve` return; requests under way are cut off.  From any thread, any number."""
        self._stopping.set()
        if self._listener is not None:
            # Wakes accept(2), which closing the descriptor would not.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)

    def answer(self, line: bytes) -> dict[str, Any]:
        """The answer to one request line; never raises."""
        try:
            return {"ok": True, **self._do(wire.decode(line))}
        except GearError as error:
            return wire.failure(error)
        except Exception:
            log.exception("internal error: %r", line[:200])
            return wire.failure(GearError("internal error; see the client's log"))

    def _take(self, connection: socket.socket) -> None:
        if not self._slots.acquire(blocking=False):
            _refuse(connection, f"the client has {_MAX_CONNECTIONS} callers already")
            return
        try:
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()
        except RuntimeError:
            self._slots.release()
            _refuse(connection, "the client can start no more threads")

    def _talk(self, connection: socket.socket) -> None:
        """Answer the lines of one connection until the caller hangs up."""
        try:
            with connection, contextlib.suppress(ConnectionError):
                rest = b""
                while data := connection.recv(wire.MAX_LINE_BYTES):
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        connection.sendall(wire.encode(self.answer(line)))
                    if len(rest) > wire.MAX_LINE_BYTES:
                        too_long = BadRequest(f"a line is longer than {wire.MAX_LINE_BYTES} bytes")
                        connection.sendall(wire.encode(wire.failure(too_long)))
                        return
        finally:
            self._slots.release()

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("op"):
            case "fetch":
                image, digest = _digest(request, "image"), _digest(request, "object")
                if self._starts is not None:
                    self._starts.opened(image, digest)
                self._fetcher.fetch(image, digest)
            case "admit":
                image = _digest(request, "image")
                self._cache.admit(image)
                if self._starts is not None:
                    self._starts.mounted(image)
            case "complete":
                self._completer.start(_digest(request, "image"))
            case "forget":
                image = _digest(request, "image")
                self._completer.stop(image)
                if self._starts is not None:
                    self._starts.forgotten(image)
                self._cache.forget(image)
            case "obtain":
                self._fetcher.obtain(_digest(request, "object"), _size(request))
            case "cluster":
                return self._in_cluster().status()
            case "leave":
                self._in_cluster().leave()
            case "status":
                return self._status()
            case op:
                raise BadRequest(f"no such request: {op!r:.100}")
        return {}

    def _in_cluster(self) -> Cluster:
        if self._cluster is None:
            raise NotFound("this node is in no cluster (setting `manager`)")
        return self._cluster

    def _status(self) -> dict[str, Any]:
        pending = self._completer.pending()
        return {
            "cached": dataclasses.asdict(self._cache.usage()),
            "fetched": dataclasses.asdict(self._fetcher.counts()),
            "completing": {image.hex: left for image, left in pending.items()},
        }

    def _keep_checkpoints(self) -> None:
        while not self._stopping.wait(_CHECKPOINT_S):
            self._take_checkpoint()

    def _take_checkpoint(self) -> None:
        # Without it the last one stays in force: more to fetch again after a crash.
        try:
            self._cache.checkpoint()
        except GearError as error:
            log.warning("no checkpoint of the cache: %s", error)
        except Exception:
            log.exception("internal error: no checkpoint of the cache")


def _refuse(connection: socket.socket, reason: str) -> None:
    log.warning("refused a caller: %s", reason)
    with connection, contextlib.suppress(OSError):
        connection.sendall(wire.encode(wire.failure(DaemonUnavailable(reason))))


def _digest(request: dict[str, Any], key: str) -> Digest:
    value = request.get(key)
    if not isinstance(value, str):
        raise BadRequest(f"{key!r} must be 64 hex digits")
    return Digest.from_hex(value)


def _size(request: dict[str, Any]) -> int | None:
    value = request.get("size")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise BadRequest(f"'size' must be a number of bytes, not {value!r:.50}")


def _listen(path: Path) -> socket.socket:
    """A listening socket that appears under *path* whole, with its mode, in one step."""
    if _is_alive(path):
        raise Conflict(f"another Gear client answers on {path}; stop it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(temporary))
    temporary.chmod(0o600)
    listener.listen(_MAX_CONNECTIONS)
    temporary.rename(path)
    return listener


def _is_alive(path: Path) -> bool:
    # One that was killed while it hung on NFS may hold its socket open for
    # long: only a client that answers is alive.
    try:
        LocalClient(path, _PROBE_S).status()
    except GearError:
        return False
    return True

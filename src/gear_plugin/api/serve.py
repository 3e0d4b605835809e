"""
Running a Flask app under gunicorn.

One worker process, because reference counts live in it, with many threads: a
`docker commit` holds one streaming Diff open while its ApplyDiff runs, and a
single-threaded worker would wait for itself.  Connections are not kept alive:
docker never retires idle ones, and one that is closed while a request is on
its way makes docker repeat the call with an empty body.

gunicorn (since 24) closes a connection in its accept loop, where it waits up
to 2 s for the peer to close first.  docker does not while it still works on
the tar that it was sent, so every `docker build` and `docker commit` would
wait; and anyone who keeps connections open would hold up everyone.  Here the
thread that served a connection of docker's closes it.

A TCP port has other callers, and a worker of its own: `connections`.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.workers.gthread import TConn, ThreadWorker

from gear_plugin.api.connections import Limits, tcp_worker
from gear_plugin.errors import BadConfig, Conflict


class _Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn is not typed
    def handle(self, conn: TConn) -> object:
        again = super().handle(conn)
        if not again:
            conn.close = _already_closed
            util.close(conn.sock)  # what was sent can still be read
        return again


def _already_closed(graceful: bool = False) -> None:
    pass


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn is not typed
    def __init__(self, make_app: Callable[[], Flask], settings: dict[str, Any]) -> None:
        self._make_app = make_app
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        for key, value in self._settings.items():
            self.cfg.set(key, value)

    def load(self) -> Flask:
        return self._make_app()


def serve(
    make_app: Callable[[], Flask],
    bind: str,
    *,
    threads: int,
    log_level: str,
    certfile: Path | None = None,
    keyfile: Path | None = None,
    ca_certs: Path | None = None,
    limits: Limits | None = None,
    listening: Callable[[], None] | None = None,
    ending: Callable[[], None] | None = None,
) -> None:
    """
    Serve until SIGTERM; *make_app* is called in the worker process.

    *listening* is called when connections are taken, in this process; *ending*
    in the worker, when it serves no more.

    *bind* is `unix:/path` or `host:port`; the rest is for the latter.  With
    *certfile* and *keyfile* (PEM) it speaks TLS alone; with *ca_certs* too,
    callers must show a certificate that one of these signed.
    """
    is_local = bind.startswith("unix:")
    settings: dict[str, Any] = {
        "bind": bind,
        "workers": 1,
        "threads": threads,
        "worker_connections": 2 * threads,
        "worker_class": _Worker if is_local else tcp_worker(limits or Limits()),
        "keepalive": 0 if is_local else 1,  # TCP: whether; Limits say how long
        "timeout": 0,
        "control_socket_disable": True,
        "graceful_timeout": 5,
        "umask": 0o077,
        "loglevel": "warning" if log_level == "info" else log_level,
        "worker_tmp_dir": "/dev/shm",  # noqa: S108 - a heartbeat file, not data
    }
    if certfile is not None:
        settings |= {"certfile": str(certfile), "keyfile": str(keyfile or certfile)}
    if ca_certs is not None:
        settings |= {"ca_certs": str(ca_certs), "cert_reqs": ssl.CERT_REQUIRED}
    # gunicorn counts a hook's parameters.
    if listening is not None:
        settings["when_ready"] = lambda _server: listening()
    if ending is not None:
        settings["worker_exit"] = lambda _server, _worker: ending()
    _Server(make_app, settings).run()


def check_free(bind: str) -> None:
    """
    See that *bind* (`host:port`) can be listened on, which gunicorn tries for long.

    Raises Conflict (somebody else does), BadConfig (no address of this machine,
    or not allowed).
    """
    host, _, port = bind.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]") or None, int(port), type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"{bind} is taken; stop who listens there, or listen on another port"
            ) from error
        raise BadConfig(f"cannot listen on {bind}: {error.strerror}") from error

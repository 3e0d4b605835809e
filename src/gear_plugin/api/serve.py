"""
Running a Flask app under gunicorn.

One worker process, because reference counts live in it, with many threads: a
`docker commit` holds one streaming Diff open while its ApplyDiff runs, and a
single-threaded worker would wait for itself.  Connections are not kept alive:
docker never retires idle ones, and one that is closed while a request is on
its way makes docker repeat the call with an empty body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication


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


def serve(make_app: Callable[[], Flask], bind: str, *, threads: int, log_level: str) -> None:
    """
    Serve until SIGTERM; *make_app* is called in the worker process.

    *bind* is `unix:/path` or `host:port`.
    """
    settings = {
        "bind": bind,
        "workers": 1,
        "threads": threads,
        "worker_class": "gthread",
        "keepalive": 0,
        "timeout": 0,
        "control_socket_disable": True,
        "graceful_timeout": 5,
        "umask": 0o077,
        "loglevel": "warning" if log_level == "info" else log_level,
        "worker_tmp_dir": "/dev/shm",  # noqa: S108 - a heartbeat file, not data
    }
    _Server(make_app, settings).run()

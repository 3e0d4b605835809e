"""
A registry in this process, for the faults that no real one can be made to have.

It speaks as much of the distribution-spec as Gear uses.  Faults are answers
that stand before the usual ones, each for one request.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gear_plugin.jobs import Limits, Logins, Registry, RegistrySettings
from tests.unit.jobs import layouts

QUICK = Limits(connect_s=2, stall_s=1, slow_s=2, slow_bytes=1000, attempts=3, pause_s=0.01)


@dataclass
class Reply:
    """An answer; *cut* ends it in the middle of its body, *hang* never ends it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    hang: bool = False
    trickle_s: float = 0
    """Between two bytes."""


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class FakeRegistry:
    """Manifests by `repository:reference`, blobs by digest, whichever the repository."""

    def __init__(self) -> None:
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.guard: Callable[[Request], Reply | None] = lambda _: None
        """Before everything else; None: go on."""
        self.ranges = True
        self.address = ""
        self.released = threading.Event()
        """What hangs ends when this is set."""
        self._faults: list[tuple[str, str, Reply]] = []

    def add(self, repository: str, image: layouts.Image) -> None:
        """Have *image* under its name as a tag, and under its digest."""
        self.add_manifest(f"{repository}:{image.name}", image.manifest, image.manifest_type)
        self.blobs[layouts.digest(image.raw_config)] = image.raw_config
        self.blobs |= {layouts.digest(blob): blob for blob in image.blobs}

    def add_manifest(self, name: str, raw: bytes, kind: str) -> None:
        repository = name.rpartition(":")[0]
        self.manifests[name] = self.manifests[f"{repository}:{layouts.digest(raw)}"] = (raw, kind)

    def fault(self, method: str, path: str, reply: Reply, *, times: int = 1) -> None:
        """The next *times* requests whose path has the pattern *path* get *reply*."""
        self._faults += [(method, path, reply)] * times

    def answer(self, request: Request) -> Reply:
        for place, (method, path, reply) in enumerate(self._faults):
            if method == request.method and re.search(path, request.path):
                del self._faults[place]
                return reply
        return self.guard(request) or self._usual(request)

    def asked(self, method: str, path: str = "") -> list[Request]:
        """The requests of that kind so far."""
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]

    def _usual(self, request: Request) -> Reply:
        path, _, query = request.path.partition("?")
        if path == "/v2/":
            return Reply()
        if found := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
            name = f"{found[1]}:{found[2]}"
            if request.method == "PUT":
                self.add_manifest(name, request.body, request.headers["Content-Type"])
                return Reply(201)
            if name not in self.manifests:
                return Reply(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
            raw, kind = self.manifests[name]
            return Reply(200, raw, {"Content-Type": kind})
        if request.method == "POST" and path.endswith("/blobs/uploads/"):
            return Reply(202, headers={"Location": f"{path}1234?state=x"})
        if request.method == "PUT" and "/blobs/uploads/" in path:
            digest = layouts.digest(request.body)
            if f"digest={digest.replace(':', '%3A')}" not in query:
                return Reply(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
            self.blobs[digest] = request.body
            return Reply(201)
        if found := re.fullmatch(r"/v2/(.+)/blobs/([^/]+)", path):
            return self._blob(found[2], request)
        return Reply(404)

    def _blob(self, digest: str, request: Request) -> Reply:
        data = self.blobs.get(digest)
        if data is None:
            return Reply(404, b'{"errors": [{"code": "BLOB_UNKNOWN", "message": "no such blob"}]}')
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if wanted is None or not self.ranges:
            return Reply(200, data)
        start = int(wanted[1])
        where = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return Reply(206, data[start:], {"Content-Range": where})


@contextmanager
def serving(registry: FakeRegistry) -> Iterator[FakeRegistry]:
    """*registry* on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            # A TLS hello has no line's end to wait for.
            if self.connection.recv(1, socket.MSG_PEEK) != b"\x16":
                super().handle()

        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            request = Request(self.command, self.path, dict(self.headers), body)
            registry.requests.append(request)
            self._send(registry.answer(request))

        do_HEAD = do_PUT = do_POST = do_PATCH = do_GET  # noqa: N815 - the base class's words

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for key, value in reply.headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            body = b"" if self.command == "HEAD" else reply.body[: reply.cut]
            step = 1 if reply.trickle_s else max(len(body), 1)
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
                if reply.trickle_s:
                    self.wfile.flush()
                    if registry.released.wait(reply.trickle_s):
                        break
            if reply.hang:
                self.wfile.flush()
                registry.released.wait(30)
            if reply.hang or reply.cut is not None or reply.trickle_s:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a client that goes away

    with Server(("127.0.0.1", 0), Handler) as server:
        registry.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield registry
        finally:
            registry.released.set()
            server.shutdown()
            thread.join()


def client(folder: Path, *, limits: Limits = QUICK, **more: Any) -> Registry:
    """A registry client with docker's files in *folder*."""
    logins = Logins(folder / "config.json", helper_timeout_s=5)
    return Registry(
        RegistrySettings(logins=logins, certs=folder / "certs.d", limits=limits, **more)
    )


def token_reply(token: str = "abc") -> Reply:
    return Reply(200, json.dumps({"token": token}).encode())


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

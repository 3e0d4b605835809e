"""
An engine for real `gear push` processes: enough of Docker's HTTP API, over a
unix socket, to inspect an image and to push it to a registry that waits.
"""

from __future__ import annotations

import json
import shutil
import socketserver
import tempfile
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from gear_plugin.errors import ImageNotFound
from gear_plugin.names import ImageId
from tests.unit.jobs.fakes import FakeEngine


class StubEngine(socketserver.ThreadingUnixStreamServer):
    """Serves *fake*'s images while its block runs."""

    daemon_threads = True

    def __init__(self, fake: FakeEngine) -> None:
        self.fake = fake
        self.is_asked = threading.Event()
        """Set when a push to the registry begins."""
        self.may_answer = threading.Event()
        """Cleared: the registry does not answer."""
        self.may_answer.set()
        # Short: a socket's path is limited to 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="gear-stub-"))
        super().__init__(str(self._folder / "socket"), _Handler)

    @property
    def host(self) -> str:
        """As in DOCKER_HOST."""
        return f"unix://{self._folder}/socket"

    def __enter__(self) -> StubEngine:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None = None,
        _error: BaseException | None = None,
        _trace: TracebackType | None = None,
    ) -> None:
        self.may_answer.set()
        self.shutdown()
        self.server_close()
        shutil.rmtree(self._folder)


class _Handler(BaseHTTPRequestHandler):
    server: StubEngine

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.endswith("/version"):
            self._answer(200, {"ApiVersion": "1.41", "Version": "20.10.24"})
            return
        try:
            self._answer(200, self.server.fake.inspect(self._image("/json")))
        except ImageNotFound as error:
            self._answer(404, {"message": str(error)})

    def do_POST(self) -> None:
        name = self._image("/push").name
        tag = urlsplit(self.path).query.removeprefix("tag=")
        self.server.is_asked.set()
        self.server.may_answer.wait(60)
        self.server.fake.pushed.append(f"{name}:{tag}")
        self._answer(200, {"status": "Pushed", "id": "0"})

    def _image(self, end: str) -> ImageId:
        path = unquote(urlsplit(self.path).path)
        return ImageId.parse(path.partition("/images/")[2].removesuffix(end))

    def _answer(self, code: int, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        try:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except BrokenPipeError:
            pass  # who asked was killed

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None:
        pass

"""
A driver on a unix socket, as docker's proxy uses it.

Each method is one call of the protocol (moby daemon/graphdriver/proxy.go),
sent as docker sends it: POST, no content type, keys that are empty left out.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.unix_http import UnixConnection

_TIMEOUT_S = 120.0
_ACCEPT = {"Accept": "application/vnd.docker.plugins.v1.2+json"}


class Refused(Exception):
    """The answer was not 200: its status and its `Err`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status, self.text = status, text


class Driver:
    """The calls; *path* is the socket."""

    def __init__(self, path: Path | str) -> None:
        self._path = path

    def create(self, layer: str, parent: str = "", *, writable: bool = False) -> None:
        """Create or CreateReadWrite."""
        self.call("CreateReadWrite" if writable else "Create", ID=layer, Parent=parent)

    def get(self, layer: str) -> Path:
        """Get's Dir."""
        return Path(self.call("Get", ID=layer)["Dir"])

    def put(self, layer: str) -> None:
        """Put."""
        assert self.call("Put", ID=layer) == {}

    @contextmanager
    def mounted(self, layer: str) -> Iterator[Path]:
        """Get, and Put at the end."""
        path = self.get(layer)
        try:
            yield path
        finally:
            self.put(layer)

    def remove(self, layer: str) -> None:
        """Remove."""
        assert self.call("Remove", ID=layer) == {}

    def exists(self, layer: str) -> bool:
        """Exists."""
        return bool(self.call("Exists", ID=layer)["Exists"])

    def changes(self, layer: str, parent: str = "") -> dict[str, int]:
        """Changes: path to kind (0 modified, 1 added, 2 deleted)."""
        found = self.call("Changes", ID=layer, Parent=parent)["Changes"]
        assert len({change["Path"] for change in found}) == len(found)
        return {change["Path"]: change["Kind"] for change in found}

    def diff_size(self, layer: str, parent: str = "") -> int:
        """DiffSize."""
        return int(self.call("DiffSize", ID=layer, Parent=parent)["Size"])

    def diff(self, layer: str, parent: str = "") -> bytes:
        """The whole of Diff's tar."""
        return b"".join(self.stream(layer, parent))

    def stream(self, layer: str, parent: str = "") -> Generator[bytes]:
        """Diff's tar as it comes."""
        connection, answer = self._post("/GraphDriver.Diff", _body(ID=layer, Parent=parent))
        try:
            _check(answer)
            while piece := answer.read(1 << 20):
                yield piece
        finally:
            connection.close()

    def apply(self, layer: str, parent: str, tar: Iterable[bytes] | bytes) -> int:
        """ApplyDiff with a chunked body; its Size."""
        pieces = [tar] if isinstance(tar, bytes) else tar
        target = f"/GraphDriver.ApplyDiff?id={layer}&parent={parent}"
        connection, answer = self._post(target, pieces)
        try:
            _check(answer)
            return int(json.loads(answer.read())["Size"])
        finally:
            connection.close()

    def call(self, name: str, **message: object) -> dict[str, Any]:
        """Any call with a JSON body; empty values are left out, as docker does."""
        return self.raw(name, _body(**message))

    def raw(self, name: str, body: bytes) -> dict[str, Any]:
        """Any call with this body."""
        connection, answer = self._post(f"/GraphDriver.{name}", body)
        try:
            _check(answer)
            found: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        return found

    def broken_off(self, layer: str, parent: str, tar: bytes) -> None:
        """Begin an ApplyDiff and hang up before the last chunk."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self._path))
            line.sendall(
                f"POST /GraphDriver.ApplyDiff?id={layer}&parent={parent} HTTP/1.1\r\n"
                "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                f"{len(tar):x}\r\n".encode()
            )
            line.sendall(tar + b"\r\n")

    def _post(
        self, target: str, body: bytes | Iterable[bytes]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = UnixConnection(self._path, _TIMEOUT_S)
        chunked = not isinstance(body, bytes)
        headers = _ACCEPT | ({"Transfer-Encoding": "chunked"} if chunked else {})
        connection.request("POST", target, body, headers, encode_chunked=chunked)
        return connection, connection.getresponse()


def _body(**message: object) -> bytes:
    return json.dumps({key: value for key, value in message.items() if value}).encode() + b"\n"


def _check(answer: http.client.HTTPResponse) -> None:
    if answer.status != 200:
        raise Refused(answer.status, str(json.loads(answer.read()).get("Err")))

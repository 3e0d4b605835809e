"""The Docker SDK border against a small HTTP server that speaks the engine's API."""

from __future__ import annotations

import gc
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.errors import EngineUnavailable, GearError, ImageNotFound, SourceUnavailable
from gear_plugin.jobs import DockerEngine
from gear_plugin.names import ImageId
from tests.unit.jobs.fakes import Recorder

IMAGE = ImageId.parse("127.0.0.1:5000/team/app:1")
_REF = "/images/127.0.0.1:5000/team/app:1"
_PREFIX = "/v1.41"


@dataclass
class Reply:
    """Status and body; *cut* leaves a chunked body without its end, *hang* for a while."""

    status: int = 200
    body: bytes = b"{}"
    cut: bool = False
    hang: bool = False


@dataclass
class Api:
    """What the server answers, by method and path without version and query."""

    host: str
    replies: dict[str, Reply] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    engines: list[DockerEngine] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def engine(self) -> DockerEngine:
        self.engines.append(DockerEngine(self.host, {}))
        return self.engines[-1]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    found = Api(f"unix://{tmp_path}/d.sock")
    found.replies["GET /version"] = Reply(body=json.dumps({"ApiVersion": "1.41"}).encode())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            found.bodies.append(self._chunked_body() if not size else self.rfile.read(size))
            path = self.path.partition("?")[0].removeprefix(_PREFIX)
            missing = Reply(404, b'{"message": "No such image"}')
            reply = found.replies.get(f"{self.command} {path}", missing)
            self.send_response(reply.status)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(reply.body), reply.body))
            if reply.hang:
                self.wfile.flush()
                found.released.wait(30)
            if reply.cut or reply.hang:
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")

        do_POST = do_GET  # noqa: N815 - the base class's word

        def _chunked_body(self) -> bytes:
            body = b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            return body

        def log_message(self, *_: Any) -> None:
            pass

        def address_string(self) -> str:
            return "test"

    with _Server(f"{tmp_path}/d.sock", Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield found
        for engine in found.engines:
            engine.close()
        server.shutdown()
        thread.join()


def test_inspect_gives_what_the_engine_says(api: Api) -> None:
    """
    Names with a registry and slashes included.
    """
    api.replies[f"GET {_REF}/json"] = Reply(body=b'{"Id": "sha256:1"}')
    assert api.engine().inspect(IMAGE) == {"Id": "sha256:1"}


def test_export_writes_the_whole_stream(api: Api, tmp_path: Path) -> None:
    """
    And tells of every byte.
    """
    saved = bytes(range(256)) * 40_000
    api.replies[f"GET {_REF}/get"] = Reply(body=saved)
    counts: list[int] = []
    api.engine().export(IMAGE, tmp_path / "spool", counts.append)
    assert (tmp_path / "spool").read_bytes() == saved
    assert sum(counts) == len(saved)


def test_load_sends_the_archive(api: Api, tmp_path: Path) -> None:
    """
    All of it, as it is.
    """
    api.replies["POST /images/load"] = Reply(body=b'{"stream": "Loaded image: x"}\r\n')
    archive = tmp_path / "archive"
    archive.write_bytes(b"archive" * 10_000)
    api.engine().load(archive)
    assert api.bodies[-1] == b"archive" * 10_000


def test_push_tells_of_each_layer(api: Api) -> None:
    """
    One line a layer, not one a progress message.
    """
    messages = [
        {"status": "The push refers to repository [127.0.0.1:5000/team/app]"},
        {"status": "Pushing", "id": "ab12", "progressDetail": {"current": 1, "total": 2}},
        {"status": "Pushed", "id": "ab12"},
        {"status": "Layer already exists", "id": "cd34"},
    ]
    body = b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)
    api.replies["POST /images/127.0.0.1:5000/team/app/push"] = Reply(body=body)
    progress = Recorder()
    api.engine().push(IMAGE, progress)
    assert [text for text, _, _ in progress.steps] == [
        "layer ab12: pushed",
        "layer cd34: layer already exists",
    ]


_ERROR = b'{"errorDetail": {"message": "no"}, "error": "unauthorized: log in"}\r\n'
_REFUSED = b'{"message": "the disk is full"}'


@pytest.mark.parametrize(
    ("call", "reply", "expected", "words"),
    [
        ("inspect", None, ImageNotFound, "no image 127.0.0.1:5000/team/app:1 in the engine"),
        ("inspect", Reply(500, _REFUSED), EngineUnavailable, "refused: the disk is full"),
        ("export", None, ImageNotFound, "docker images"),
        ("export", Reply(500, _REFUSED), EngineUnavailable, "refused: the disk is full"),
        ("export", Reply(body=b"x" * 9999, cut=True), EngineUnavailable, "--host"),
        ("load", Reply(500, _REFUSED), EngineUnavailable, "cannot load it: the disk is full"),
        ("load", Reply(body=_ERROR), EngineUnavailable, "unauthorized: log in"),
        ("push", None, ImageNotFound, "no image"),
        ("push", Reply(body=_ERROR), SourceUnavailable, "the registry did not take .*log in"),
        ("push", Reply(body=b'{"status": "x"}\r\n', cut=True), EngineUnavailable, "--host"),
    ],
)
def test_foreign_errors_are_translated(
    api: Api,
    tmp_path: Path,
    call: str,
    reply: Reply | None,
    expected: type[GearError],
    words: str,
) -> None:
    """
    Into one line of Gear's own, whatever raised.
    """
    places = {
        "inspect": f"GET {_REF}/json",
        "export": f"GET {_REF}/get",
        "load": "POST /images/load",
        "push": "POST /images/127.0.0.1:5000/team/app/push",
    }
    if reply is not None:
        api.replies[places[call]] = reply
    engine, path = api.engine(), tmp_path / "file"
    path.write_bytes(b"content")
    with pytest.raises(expected, match=words):
        match call:
            case "inspect":
                engine.inspect(IMAGE)
            case "export":
                engine.export(IMAGE, path, lambda _: None)
            case "load":
                engine.load(path)
            case _:
                engine.push(IMAGE, Recorder())


# The SDK leaves a unix socket that could not connect to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("unix:///nowhere/d.sock", "No such file or directory"),
        ("tcp://127.0.0.1:9", "Connection refused"),
        ("nonsense://x", "Invalid bind .*"),
    ],
)
def test_no_engine_there(host: str, reason: str) -> None:
    """
    The message names the address and how to give another, and says no more than why.
    """
    words = rf"no Docker engine answers at {host} \(--host, DOCKER_HOST\): {reason}\Z"
    with pytest.raises(EngineUnavailable, match=words):
        DockerEngine(host, {})
    gc.collect()


def test_tls_comes_from_docker_s_own_variables(tmp_path: Path) -> None:
    """
    DOCKER_TLS_VERIFY and DOCKER_CERT_PATH mean what they mean to docker.
    """
    environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path / "none")}
    with pytest.raises(EngineUnavailable, match=r"(?i)tls") as raised:
        DockerEngine("tcp://127.0.0.1:9", environ)
    assert "\n" not in str(raised.value)


def test_an_engine_that_hangs_is_given_up(tmp_path: Path) -> None:
    """
    One that takes the connection and says nothing is not waited for without an end.
    """
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/d.sock")
        silent.listen(8)
        with pytest.raises(
            EngineUnavailable, match=r"no Docker engine answers at .*(?i:timed out)"
        ):
            DockerEngine(f"unix://{tmp_path}/d.sock", {}, contact_timeout_s=1)


def test_an_engine_that_stalls_while_it_saves_is_given_up(api: Api, tmp_path: Path) -> None:
    """
    Between two bytes, however long the whole takes.
    """
    api.replies[f"GET {_REF}/get"] = Reply(body=b"x" * 9999, hang=True)
    engine = DockerEngine(api.host, {}, timeout_s=1)
    api.engines.append(engine)
    with pytest.raises(EngineUnavailable, match=r"(?i:timed out)"):
        engine.export(IMAGE, tmp_path / "spool", lambda _: None)
    api.released.set()


def test_the_platform_is_the_engine_s(api: Api) -> None:
    """
    In the words of images.
    """
    version = {"ApiVersion": "1.41", "Os": "linux", "Arch": "arm64"}
    api.replies["GET /version"] = Reply(body=json.dumps(version).encode())
    assert str(api.engine().platform()) == "linux/arm64"

"""Nodes, and a manager, that do on a real port what a test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from gear_plugin.cluster import Member, Members, Token, homes, route
from gear_plugin.digest import Digest

TOKEN = Token("0123456789abcdef", "ab" * 32)
ME = "f" * 32
MISSING = (1 << 64) - 1

Answer = Callable[["Request", Digest], None]


class Request(BaseHTTPRequestHandler):
    """One request to a FakeNode."""

    protocol_version = "HTTP/1.1"
    server: FakeNode

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        with self.server.lock:
            self.server.requests.append(self.path)
            self.server.headers.append(dict(self.headers))
        self.query = parse_qs(url.query)
        verb, _, rest = url.path[1:].partition("/")
        if self.headers["Authorization"] != TOKEN.header():
            self.refuse(401, "AccessDenied", "no")
        elif verb == "batch":
            self.server.batch(self, [Digest(body[at : at + 32]) for at in range(0, len(body), 32)])
        else:
            self.server.answer(self, Digest.parse(rest))

    def send(self, content: bytes, length: int | None = None) -> None:
        """An answer; *length* is what it claims to have."""
        self.begin(len(content) if length is None else length)
        self.wfile.write(content)

    def begin(self, length: int | None, status: int = 200) -> None:
        """The head of an answer; without *length* it ends with the connection."""
        self.send_response(status)
        if length is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.flush()

    def refuse(self, status: int, error: str, message: str) -> None:
        """As api/door.py."""
        data = json.dumps({"error": error, "message": message}).encode()
        self.begin(len(data), status)
        self.wfile.write(data)

    def break_off(self) -> None:
        """End the connection here."""
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


def serve_contents(request: Request, digest: Digest) -> None:
    """What a healthy node does."""
    content = request.server.contents.get(digest)
    if content is None:
        request.refuse(404, "ContentNotFound", f"no {digest} here")
    else:
        request.send(content)


def serve_batch(request: Request, digests: list[Digest]) -> None:
    """What a healthy node does with a batch, as one chunked stream."""
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    for digest in digests:
        content = request.server.contents.get(digest)
        size = MISSING if content is None else len(content)
        data = digest.raw + size.to_bytes(8, "big") + (content or b"")
        request.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
    request.wfile.write(b"0\r\n\r\n")


class FakeNode(ThreadingHTTPServer):
    """A node that has *contents*; `answer` and `batch` may be replaced."""

    daemon_threads = True

    def __init__(self, node: str = "1" * 32) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.lock = threading.Lock()
        self.contents: dict[Digest, bytes] = {}
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self.answer: Answer = serve_contents
        self.batch: Callable[[Request, list[Digest]], None] = serve_batch
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.member = Member(node, self.address)
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, *contents: bytes) -> None:
        """Have objects."""
        self.contents.update((Digest.of(content), content) for content in contents)

    def hang(self, _request: Request, _digest: Digest) -> None:
        """An answer that comes only when the test is over."""
        self.released.wait(30)

    def handle_error(self, *_: object) -> None:
        """Callers hang up, and tests break off."""


@contextlib.contextmanager
def running(count: int) -> Iterator[list[FakeNode]]:
    """Some nodes."""
    nodes = [FakeNode(f"{number:032x}") for number in range(1, count + 1)]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.released.set()
            node.shutdown()
            node.server_close()


def members_of(nodes: list[FakeNode], *others: Member) -> Members:
    """Their list."""
    return Members(1, tuple(sorted([*(node.member for node in nodes), *others])))


def in_order(nodes: list[FakeNode], digest: Digest) -> list[FakeNode]:
    """*nodes* in the order in which ME asks them for the object."""
    by_id = {node.member.node: node for node in nodes}
    members = Members(1, tuple(node.member for node in nodes))
    asked = route(digest, members, ME)
    others = homes(digest, members.nodes, len(nodes))[len(asked) :]
    return [by_id[member.node] for member in (*asked, *others)]

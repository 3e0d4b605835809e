"""Asking a node who it is."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gear_plugin.cluster import Member, Token
from gear_plugin.errors import Conflict, SourceUnavailable
from gear_plugin.jobs.node_info import NodeInfo
from gear_plugin.jobs.tls import Tls
from tests import certificates

NODE = "a" * 32
TOKEN = Token.new()


class Node(HTTPServer):
    """A node's port, as far as a manager asks it."""

    status = 200
    body = json.dumps({"node": NODE, "cluster": TOKEN.cluster, "uptime_s": 7}).encode()

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str | None]] = []

    @property
    def member(self) -> Member:
        return Member(NODE, f"127.0.0.1:{self.server_port}")


class _Handler(BaseHTTPRequestHandler):
    server: Node

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's
        pass


@contextlib.contextmanager
def served(node: Node) -> Iterator[Node]:
    thread = threading.Thread(target=node.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield node
    finally:
        node.shutdown()
        thread.join()
        node.server_close()


@pytest.fixture
def node() -> Iterator[Node]:
    with served(Node()) as node:
        yield node


def info() -> NodeInfo:
    return NodeInfo(TOKEN, timeout_s=5, tls=None)


def test_a_node_that_answers_as_itself(node: Node) -> None:
    """It is asked with the token."""
    asking = info()
    asking.ask(node.member)
    asking.close()
    assert node.asked == [("/info", TOKEN.header())]


@pytest.mark.parametrize(
    "body", [{"node": "b" * 32, "cluster": TOKEN.cluster}, {"node": NODE, "cluster": "f" * 16}, {}]
)
def test_somebody_else_at_its_address(node: Node, body: dict[str, str]) -> None:
    """Another node, or another cluster's, is not the node that was looked for."""
    node.body = json.dumps(body).encode()
    with pytest.raises(Conflict, match=f"at {node.member.address} answers"):
        info().ask(node.member)


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, b'{"error": "AccessDenied"}'), (307, b""), (200, b"<html>"), (200, b"[]")],
)
def test_answers_that_make_no_sense(node: Node, status: int, body: bytes) -> None:
    """Among them a redirect, which is not followed: the token goes nowhere else."""
    node.status, node.body = status, body
    with pytest.raises(SourceUnavailable, match=f"http://{node.member.address}/info"):
        info().ask(node.member)
    assert len(node.asked) == 1


def test_an_endless_answer_is_not_read(node: Node) -> None:
    """A few kilobytes are an answer."""
    node.body = b" " * (1 << 17) + node.body
    with pytest.raises(SourceUnavailable):
        info().ask(node.member)


def test_a_node_that_is_not_there(node: Node) -> None:
    """One line, with the address."""
    with served(Node()) as gone:
        member = gone.member
    with pytest.raises(SourceUnavailable, match=member.address):
        info().ask(member)


def test_with_tls(tmp_path: Path) -> None:
    """The node must have a certificate of the CA, for its address; ours is shown to it."""
    made = certificates.make(tmp_path / "ours")
    other = certificates.make(tmp_path / "other")
    tls = Tls(made / "server.pem", made / "server.key", made / "ca.pem")
    node = Node()
    node.socket = tls.server_context().wrap_socket(node.socket, server_side=True)
    with served(node):
        NodeInfo(TOKEN, timeout_s=5, tls=tls.client_context()).ask(node.member)
        strange = Tls(other / "server.pem", other / "server.key", other / "ca.pem")
        with pytest.raises(SourceUnavailable, match="certificate verify failed"):
            NodeInfo(TOKEN, timeout_s=5, tls=strange.client_context()).ask(node.member)
    assert len(node.asked) == 1

"""A manager on a real port, whose list of nodes the test changes."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gear_plugin.cluster import Member, Members, Settings, Token
from gear_plugin.errors import AccessDenied


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeManager

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self._is_let_in():
            verb = urlsplit(self.path).path
            found = self.server.join(message) if verb == "/join" else self.server.leave(message)
            self._reply(found)

    def do_GET(self) -> None:
        if not self._is_let_in():
            return
        url = urlsplit(self.path)
        if url.path == "/settings":
            server = self.server
            cluster = server.token.cluster
            self._reply({"cluster": cluster, "settings": server.settings.as_json()})
        else:
            query = parse_qs(url.query)
            version = int(query.get("version", ["-1"])[0])
            self._reply(self.server.nodes(version, float(query.get("wait", ["0"])[0])))

    def _is_let_in(self) -> bool:
        with self.server.changed:
            self.server.requests.append(f"{self.command} {self.path}")
        try:
            self.server.token.admit(self.headers.get("Authorization", ""))
        except AccessDenied as error:
            self._reply({"error": "AccessDenied", "message": str(error)}, 401)
            return False
        return True

    def _reply(self, answer: dict[str, Any], status: int = 200) -> None:
        if self.server.is_stopped:
            self.close_connection = True
            return
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class FakeManager(ThreadingHTTPServer):
    """Answers from `start` to `stop`; any number of times, always at one address."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, token: Token, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.token = token
        self.port = self.server_address[1]
        self.address = f"127.0.0.1:{self.port}"
        self.settings = Settings("/srv/store", "etcd://e")
        self.members = Members(1, ())
        self.requests: list[str] = []
        self.joins: list[dict[str, Any]] = []
        self.changed = threading.Condition()
        self.is_stopped = False
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """No answer any more, to whoever waits either."""
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()
        self.shutdown()
        self.server_close()

    def set(self, *nodes: Member) -> None:
        """The list is this now."""
        with self.changed:
            self.members = Members(self.members.version + 1, tuple(sorted(nodes)))
            self.changed.notify_all()

    def join(self, message: dict[str, Any]) -> dict[str, Any]:
        address = "127.0.0.1" + message["address"]
        others = [node for node in self.members.nodes if node.node != message["node"]]
        self.set(*others, Member(message["node"], address))
        self.joins.append(message)
        return {
            "cluster": self.token.cluster,
            "node": message["node"],
            "address": address,
            "settings": self.settings.as_json(),
            **self.members.as_json(),
        }

    def leave(self, message: dict[str, Any]) -> dict[str, Any]:
        self.set(*(node for node in self.members.nodes if node.node != message["node"]))
        return {}

    def nodes(self, version: int, wait_s: float) -> dict[str, Any]:
        with self.changed:
            self.changed.wait_for(
                lambda: self.is_stopped or self.members.version != version, wait_s
            )
            return self.members.as_json()

    def handle_error(self, *_: object) -> None:
        """Callers hang up."""

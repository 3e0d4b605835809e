"""
A registry over plain http on loopback, that may want a login: Debian's docker-registry.

With a token server it is protected as Docker Hub is: the server signs tokens
for whoever gives the right name and password, and the registry checks the
signature and what a token allows.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "tester", "opensesame"
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuQbLfdQZSxZ9gjhA5V9o8Tyc6aQRO0Qi\n"
"""bcrypt of PASSWORD."""
_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {folder}/storage}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""
_BASIC = "auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
_TOKEN = (
    "auth: {{token: {{realm: 'http://127.0.0.1:{token_port}/token', service: test, "
    "issuer: test, rootcertbundle: {folder}/token.pem}}}}\n"
)


class LoginRegistry:
    """`docker-registry serve` in *folder*; *auth* is None, `basic` or `token`."""

    def __init__(self, folder: Path, auth: str | None = None) -> None:
        self._folder = folder
        self._auth = auth
        self._process: subprocess.Popen[bytes] | None = None
        self._tokens: _TokenServer | None = None
        self.address = f"127.0.0.1:{_free_port()}"

    @property
    def storage(self) -> Path:
        """Where its blobs lie."""
        return self._folder / "storage"

    def start(self) -> None:
        """Start, and wait until it listens."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        text = _CONFIG
        if self._auth == "basic":
            (self._folder / "htpasswd").write_text(_HTPASSWD)
            text += _BASIC
        elif self._auth == "token":
            self._tokens = _TokenServer(self._folder)
            text += _TOKEN
        port = self.address.rpartition(":")[2]
        token_port = self._tokens.port if self._tokens is not None else 0
        config = self._folder / "config.yml"
        config.write_text(text.format(folder=self._folder, port=port, token_port=token_port))
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(config)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
            except OSError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline, "the registry did not come up"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop it; what it stored stays until the next start."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None
        if self._tokens is not None:
            self._tokens.stop()
            self._tokens = None


class _TokenServer:
    """distribution docs/spec/auth/jwt.md: RS256, with the certificate in the token."""

    def __init__(self, folder: Path) -> None:
        words = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30")
        subprocess.run(
            ["openssl", *words, "-subj", "/CN=test", "-keyout", "token.key", "-out", "token.pem"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        der = subprocess.run(
            ["openssl", "x509", "-in", "token.pem", "-outform", "DER"],
            cwd=folder,
            check=True,
            capture_output=True,
        ).stdout
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                given = self.headers.get("Authorization")
                right = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                if given not in (None, f"Basic {right}"):
                    self.send_error(401)
                    return
                self._answer(query["service"][0], query["scope"][0], known=given is not None)

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                form = parse_qs(self.rfile.read(size).decode())
                if form["refresh_token"] != [PASSWORD]:
                    self.send_error(401)
                    return
                self._answer(form["service"][0], form["scope"][0], known=True)

            def _answer(self, service: str, scope: str, *, known: bool) -> None:
                kind, name, actions = scope.split(":")
                allowed = actions.split(",") if known else []
                body = json.dumps({"token": server.token(service, kind, name, allowed)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._folder = folder
        self._chain = base64.b64encode(der).decode()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.port = int(self._server.server_address[1])

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def token(self, service: str, kind: str, name: str, actions: list[str]) -> str:
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self._chain]}
        claims = {
            **{"iss": "test", "sub": USER, "aud": service, "jti": str(time.monotonic_ns())},
            **{"iat": now - 10, "nbf": now - 10, "exp": now + 300},
            "access": [{"type": kind, "name": name, "actions": actions}],
        }
        signed = ".".join(_url64(json.dumps(part).encode()) for part in (head, claims))
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", "token.key"],
            cwd=self._folder,
            input=signed.encode(),
            check=True,
            capture_output=True,
        ).stdout
        return f"{signed}.{_url64(signature)}"


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

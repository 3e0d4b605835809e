"""
A private registry on loopback, with TLS by a certificate authority of its own.

Debian's docker-registry.  Clients trust it through SSL_CERT_FILE, so nothing
is written to /etc.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {storage}}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
  tls: {{certificate: {folder}/server.pem, key: {folder}/server.key}}
"""


class Registry:
    """
    `docker-registry serve` under *workdir*, empty at each start.

    *users*: lines of htpasswd (bcrypt); None: everybody may do everything.
    """

    def __init__(self, workdir: Path, users: str | None = None) -> None:
        self._folder = workdir.resolve()
        self._users = users
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        """`127.0.0.1:<port>`, once started."""

    @property
    def client_environ(self) -> dict[str, str]:
        """What makes a Go program trust this registry."""
        return {"SSL_CERT_FILE": str(self._folder / "ca.pem")}

    def start(self) -> None:
        """Make the certificates, start, and wait until it listens."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._certificates()
        port = _free_port()
        self.address = f"127.0.0.1:{port}"
        config = self._folder / "config.yml"
        text = _CONFIG.format(storage=self._folder / "storage", port=port, folder=self._folder)
        if self._users is not None:
            (self._folder / "users").write_text(self._users)
            text += f"auth:\n  htpasswd: {{realm: test, path: {self._folder}/users}}\n"
        config.write_text(text)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(config)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline, "the registry did not come up"
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        """Stop it; what it stored goes with the next start."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def stored_bytes(self) -> int:
        """The bytes of everything the registry holds."""
        files = (self._folder / "storage").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())

    def _certificates(self) -> None:
        def openssl(*words: str) -> None:
            subprocess.run(["openssl", *words], cwd=self._folder, check=True, capture_output=True)

        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        openssl(
            "req",
            "-x509",
            *key,
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "30",
            "-subj",
            "/CN=Gear test CA",
        )
        openssl(
            "req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1"
        )
        (self._folder / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl(
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            "ext",
            "-out",
            "server.pem",
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

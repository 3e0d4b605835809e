"""
A private registry, on loopback or in a network namespace, with TLS by its own
certificate authority.

Debian's docker-registry.  Clients trust it through SSL_CERT_FILE, so nothing
is written to /etc.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.engine.netns import inside

_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {storage}}}
  delete: {{enabled: true}}
http:
  addr: {address}
  tls: {{certificate: {folder}/server.pem, key: {folder}/server.key}}
"""


class Registry:
    """
    `docker-registry serve` under *workdir*, empty at each start.

    It listens on *host*, an address of the network namespace *netns*, and on
    *port*, or one that is free.  *users*: lines of htpasswd (bcrypt); None:
    everybody may do everything.
    """

    def __init__(
        self,
        workdir: Path,
        host: str = "127.0.0.1",
        netns: str = "",
        port: int = 0,
        users: str | None = None,
    ) -> None:
        self._folder = workdir.resolve()
        self._host = host
        self._netns = netns
        self._port = port
        self._users = users
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        """`<host>:<port>`, once started."""

    @property
    def folder(self) -> Path:
        """Where all of its files are, the certificates among them."""
        return self._folder

    @property
    def client_environ(self) -> dict[str, str]:
        """What makes a Go program trust this registry."""
        return {"SSL_CERT_FILE": str(self._folder / "ca.pem")}

    def start(self) -> None:
        """Make the certificates, start, and wait until it listens."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._certificates()
        self.address = f"{self._host}:{self._port or _free_port()}"
        config = self._folder / "config.yml"
        text = _CONFIG.format(
            storage=self._folder / "storage", address=self.address, folder=self._folder
        )
        if self._users is not None:
            (self._folder / "users").write_text(self._users)
            text += f"auth:\n  htpasswd: {{realm: test, path: {self._folder}/users}}\n"
        config.write_text(text)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                inside(self._netns, ["docker-registry", "serve", str(config)]),
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while not self._listens():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "the registry did not come up"
            time.sleep(0.1)

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

    def layers(self, ref: str) -> list[Path]:
        """The stored layers, compressed as they were pushed, of *ref* (`name:tag`, no address)."""
        name, _, tag = ref.rpartition(":")
        top = self._folder / "storage/docker/registry/v2"
        link = top / f"repositories/{name}/_manifests/tags/{tag}/current/link"
        manifest = json.loads(self._blob(link.read_text()).read_text())
        return [self._blob(layer["digest"]) for layer in manifest["layers"]]

    def _blob(self, digest: str) -> Path:
        kind, _, value = digest.partition(":")
        blobs = self._folder / "storage/docker/registry/v2/blobs"
        return blobs / kind / value[:2] / value / "data"

    def _listens(self) -> bool:
        connect = f"exec 3<>/dev/tcp/{self.address.replace(':', '/')}"
        probe = subprocess.run(
            inside(self._netns, ["bash", "-c", connect]), capture_output=True, check=False
        )
        return probe.returncode == 0

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
        subject = ("-subj", f"/CN={self._host}")
        openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", *subject)
        (self._folder / "ext").write_text(f"subjectAltName=IP:{self._host},DNS:localhost\n")
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

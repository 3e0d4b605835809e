"""Whom a registry client trusts, and through whom it goes."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.errors import BadConfig, SourceUnavailable
from gear_plugin.jobs import Logins, Reference, RegistrySettings
from gear_plugin.jobs.registry_pools import Pools
from tests.unit.jobs import layouts
from tests.unit.jobs.registries import FakeRegistry, client, serving
from tests.unit.jobs.saves import CONFIG

IMAGE = layouts.Image("1", [], CONFIG)


def pools(folder: Path, **more: Any) -> Pools:
    return Pools(RegistrySettings(Logins(folder / "config.json"), folder / "certs.d", **more))


@pytest.mark.parametrize(
    ("server", "insecure"),
    [
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("registry.example", False),
        ("10.0.0.5:5000", False),
        ("listed.example:5000", True),
        ("listed.example:5001", False),
        ("anyport.example:7", True),
        ("192.168.7.8:5000", True),
        ("192.168.8.8:5000", False),
    ],
)
def test_which_registries_may_do_without_a_certificate(
    tmp_path: Path, server: str, insecure: bool
) -> None:
    """
    Loopback, as docker has it; and those that are listed by host, port or network.
    """
    listed = ["listed.example:5000", "anyport.example", "192.168.7.0/24"]
    assert pools(tmp_path, insecure=listed).is_insecure(server) is insecure


def test_an_insecure_registry_that_is_no_network_is_a_bad_setting(tmp_path: Path) -> None:
    """
    Only what looks like one is read as one.
    """
    with pytest.raises(BadConfig, match="no network"):
        pools(tmp_path, insecure=["300.0.0.0/24"]).is_insecure("10.0.0.1")


class Tls:
    """A registry with a certificate of its own authority; it may ask for the client's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""

    def make(self) -> None:
        """The authority, the server's certificate for 127.0.0.1, and the client's."""
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9")
        self._openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=t")
        for name in ("server", "client"):
            (self.folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
            self._openssl(
                *("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=x")
            )
            self._openssl(
                *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
                *("-CAcreateserial", "-days", "9", "-extfile", "ext", "-out", f"{name}.pem"),
            )

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Tls(tmp_path_factory.mktemp("tls"))
    made.make()
    return made.folder


@pytest.fixture
def tls(certificates: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a TLS server that serves IMAGE's manifest."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", layouts.MANIFEST)
            self.end_headers()
            self.wfile.write(IMAGE.manifest)

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    if getattr(request, "param", "") == "wants a client certificate":
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "ca.pem")

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if loopback were the open network."""
    monkeypatch.setattr(Pools, "is_insecure", lambda *_: False)


def ask(folder: Path, address: str) -> None:
    registry = client(folder)
    try:
        registry.manifest(Reference.parse(f"{address}/app:1"))
    finally:
        registry.close()


def test_loopback_needs_no_proper_certificate(tls: str, tmp_path: Path) -> None:
    """
    As docker has it; but TLS is spoken, if the registry does.
    """
    ask(tmp_path, tls)


@pytest.mark.usefixtures("strict")
def test_a_certificate_of_nobody_is_refused(tls: str, tmp_path: Path) -> None:
    """
    At once, and the message says where to put the authority.
    """
    with pytest.raises(BadConfig, match=rf"not trusted here; .*certs\.d/{tls}/ca\.crt") as raised:
        ask(tmp_path, tls)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("way", ["certs.d", "SSL_CERT_FILE"])
def test_an_authority_is_trusted(
    tls: str,
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """
    That of docker's folder for this registry, or the one that OpenSSL is told of.
    """
    if way == "certs.d":
        folder = tmp_path / "certs.d" / tls
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes((certificates / "ca.pem").read_bytes())
    else:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    ask(tmp_path, tls)


@pytest.mark.parametrize("tls", ["wants a client certificate"], indirect=True)
def test_a_client_certificate_is_shown(tls: str, certificates: Path, tmp_path: Path) -> None:
    """
    The one of docker's folder for this registry.
    """
    # The server's reason may be lost when it closes the connection at once.
    with pytest.raises((BadConfig, SourceUnavailable), match=r"client\.cert|broke"):
        ask(tmp_path, tls)
    folder = tmp_path / "certs.d" / tls
    folder.mkdir(parents=True)
    for name, target in (("client.pem", "client.cert"), ("client.key", "client.key")):
        (folder / target).write_bytes((certificates / name).read_bytes())
    ask(tmp_path, tls)


def test_damaged_certificates_are_named(tls: str, tmp_path: Path) -> None:
    """
    The folder, in one line.
    """
    folder = tmp_path / "certs.d" / tls
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_text("nonsense")
    with pytest.raises(BadConfig, match=rf"certificates in {folder} cannot be used"):
        ask(tmp_path, tls)


def test_a_proxy_is_gone_through(tmp_path: Path) -> None:
    """
    That of http_proxy, but for hosts in no_proxy.
    """
    with serving(FakeRegistry()) as proxy:
        url = f"http://{proxy.address}"
        found = pools(tmp_path, proxies={"http": url, "no": "direct.example"})
        for host, through in (("registry.example", True), ("direct.example", False)):
            pool = found.of(f"http://{host}/v2/")
            assert (getattr(pool, "proxy", None) is not None) is through
        asked = found.of("http://registry.example/v2/").request(
            "GET", "http://registry.example/v2/x"
        )
        assert asked.status == 404
        assert proxy.asked("GET")[0].path == "http://registry.example/v2/x"
        found.close()

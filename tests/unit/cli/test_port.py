"""The port's process: when it runs, how it ends, and what it is made of."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin import wire
from gear_plugin.catalog import Catalog, MemoryCatalog, SqliteCatalog
from gear_plugin.cli import node, port
from gear_plugin.cluster import Token
from gear_plugin.config import Config
from gear_plugin.digest import Digest
from gear_plugin.errors import BadConfig, ContentNotFound, SourceUnavailable, TimedOut
from tests import certificates
from tests.unit.api.port_node import NODE, publish
from tests.waiting import eventually

SLEEP = [sys.executable, "-c", "import time; time.sleep(99)"]


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def child_of(keeper: port.PortKeeper) -> int:
    process = keeper._child.process
    return process.pid if process is not None else 0


# --- keeping it ----------------------------------------------------------------


def test_a_port_that_ends_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    keeper = port.PortKeeper(SLEEP, dict(os.environ))
    keeper.start()
    try:
        eventually(lambda: child_of(keeper))
        first = child_of(keeper)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: child_of(keeper) not in (0, first))
    finally:
        keeper.stop()
    assert "port ended with status -9" in caplog.text


def test_a_stopped_keeper_leaves_no_port() -> None:
    keeper = port.PortKeeper(SLEEP, dict(os.environ))
    keeper.start()
    eventually(lambda: child_of(keeper))
    pid = child_of(keeper)
    keeper.stop()
    assert not is_alive(pid)


def test_a_node_on_its_own_has_no_port(tmp_path: Path) -> None:
    """
    Without a manager nothing listens.
    """
    with port.beside(Config(root=tmp_path, run=tmp_path)):
        assert "port" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("token", ["", "nonsense"])
def test_a_cluster_without_its_token_is_refused_at_the_start(tmp_path: Path, token: str) -> None:
    """
    Not by a port that ends again and again.
    """
    config = Config(root=tmp_path, manager="m", token=token)
    with pytest.raises(BadConfig, match="gear token"), port.beside(config):
        raise AssertionError


# --- its address ---------------------------------------------------------------


def test_an_address_that_is_taken_is_waited_for_with_one_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    address = free_address()
    host, _, number = address.partition(":")
    done = threading.Event()

    def wait() -> None:
        port.await_address(address, again_s=0.01)
        done.set()

    with socket.create_server((host, int(number))):
        threading.Thread(target=wait, daemon=True).start()
        eventually(lambda: caplog.records)
        assert not done.wait(0.1)
    assert done.wait(10)
    assert len(caplog.records) == 1
    assert f"cannot listen on {address}" in caplog.text


@pytest.mark.parametrize("listen", ["here", "host:", "0.0.0.0:x", "127.0.0.1:99999999"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(BadConfig, match="listen"):
        port.await_address(listen)


# --- object ids ----------------------------------------------------------------


def test_the_catalog_is_opened_when_it_is_asked_and_again_after_a_failure() -> None:
    answers: list[Exception | Catalog] = [SourceUnavailable("down"), MemoryCatalog()]

    def open_catalog() -> Catalog:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    resolve = port.Resolver(open_catalog, 5)
    with pytest.raises(SourceUnavailable):
        resolve("0" * 64)
    for _ in range(2):
        with pytest.raises(ContentNotFound):
            resolve("0" * 64)
    assert answers == []


def test_a_catalog_that_hangs_takes_no_caller_along() -> None:
    """
    Nor do all of its threads, when they are lost.
    """
    end = threading.Event()

    def hang() -> Catalog:
        end.wait(30)
        return MemoryCatalog()

    resolve = port.Resolver(hang, 0.02)
    try:
        for _ in range(8):
            with pytest.raises(TimedOut, match="catalog"):
                resolve("0" * 64)
    finally:
        end.set()


def settings(root: Path, store: str, catalog: str) -> None:
    answer = {"settings": {"store": store, "catalog": catalog}}
    (root / "cluster.json").write_text(json.dumps(answer))


def test_a_catalog_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """
    Object ids stand for nothing then.
    """
    file = tmp_path / "cluster.sqlite"
    config = Config(root=tmp_path)
    settings(tmp_path, "", f"sqlite://{file}")
    with pytest.raises(ContentNotFound):
        port._catalog(config)
    assert not file.exists()
    SqliteCatalog(file).close()
    port._catalog(config).close()


def test_uploads_take_images_from_where_they_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    In the managed plugin no engine can be reached.
    """
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(port, "_DOCKER_SOCKET", tmp_path / "none")
    assert port._image_source(Config()) == "registry"
    assert port._image_source(Config(docker_host="unix:///x")) == "engine"
    monkeypatch.setenv("DOCKER_HOST", "tcp://x")
    assert port._image_source(Config()) == "engine"


# --- the whole process ---------------------------------------------------------


class ClientSocket:
    """A client process's socket that has nothing but its place in the cluster."""

    def __init__(self, run: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(run / "client.sock"))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(wire.encode(self._answer(wire.decode(line))))

    def _answer(self, request: dict[str, object]) -> dict[str, object]:
        match request["op"]:
            case "cluster":
                return {"ok": True, "node": NODE, "members": {"version": 7, "nodes": []}}
            case "status":
                return {"ok": True, "cached": {}, "fetched": {}, "completing": {}}
            case "obtain":
                assert request["size"] == 3
                return wire.failure(ContentNotFound("no source has it"))
        raise AssertionError(request)


@pytest.fixture(params=["plain", "tls"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Config]:
    tls = {}
    if request.param == "tls":
        folder = certificates.make(tmp_path / "tls")
        tls = {"tls_cert": folder / "server.pem", "tls_key": folder / "server.key"}
    config = Config(
        **tls,
        root=tmp_path / "gear",
        run=tmp_path,
        manager="127.0.0.1:1",
        token=Token.new().text(),
        listen=free_address(),
    )
    config.root.mkdir()
    client = ClientSocket(tmp_path)
    yield config
    client.close()


def ask(config: Config, method: str, path: str) -> tuple[int, bytes]:
    if config.tls_cert is None:
        connection = http.client.HTTPConnection(config.listen, timeout=10)
    else:
        trust = ssl.create_default_context(cafile=config.tls_cert.with_name("ca.pem"))
        connection = http.client.HTTPSConnection(config.listen, timeout=10, context=trust)
    try:
        headers = {"Authorization": Token.parse(config.token).header()}
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def is_up(config: Config) -> bool:
    try:
        return ask(config, "GET", "/healthz")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_the_port_is_served_beside_the_client(config: Config) -> None:
    """
    The real process: settings pass to it, it asks the client's socket, it ends with the block.
    """
    digest = publish(config.root, os.urandom(1 << 20))
    with port.beside(config):
        eventually(lambda: is_up(config), timeout_s=30)
        assert json.loads(ask(config, "GET", "/info")[1])["members_version"] == 7
        status, content = ask(config, "POST", f"/download/{digest}")
        assert (status, Digest.of(content)) == (200, digest)
        status, answer = ask(config, "POST", f"/download/{Digest.of(b'?')}?size=3")
        assert (status, json.loads(answer)["error"]) == (404, "ContentNotFound")
        assert ask(config, "POST", f"/download/{'0' * 64}")[0] == 404
        assert ask(config, "POST", "/get/library%2Fnginx/1.25/etc%2Fpasswd")[0] == 404
    assert not is_up(config)


def test_the_port_does_not_outlive_a_killed_client(config: Config) -> None:
    """
    Its successor could not listen.
    """
    program = """
import sys, threading
from gear_plugin.cli import port
from gear_plugin.config import load
with port.beside(load()):
    threading.Event().wait()
"""
    environ = {**os.environ, **node.as_environment(config)}
    client = subprocess.Popen([sys.executable, "-c", program], env=environ)
    try:
        eventually(lambda: is_up(config), timeout_s=30)
    finally:
        client.kill()
        client.wait()
    deadline = time.monotonic() + 10
    while is_up(config):
        assert time.monotonic() < deadline
        time.sleep(0.05)

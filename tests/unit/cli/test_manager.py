"""`gear manager`, `gear token` and `gear nodes` as processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3

from gear_plugin import cli
from gear_plugin.cli.manager import manager_id
from gear_plugin.cluster import Member, Members, Token
from gear_plugin.digest import Digest
from gear_plugin.errors import BadConfig, Conflict, SourceUnavailable
from tests import certificates
from tests.etcd_server import EtcdServer
from tests.waiting import eventually

A, B = "a" * 32, "b" * 32
START_S = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Machine:
    """One with Gear's settings in its environment."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        plain: dict[str, object] = {
            "root": folder / "root",
            "store": folder / "store",
            "catalog": f"sqlite:///{folder}/catalog.sqlite",
            "check_s": 0.1,
            "catalog_timeout_s": 5,
        }
        named = {f"GEAR_{key.upper()}": str(value) for key, value in (plain | settings).items()}
        self.environ = {**os.environ, **named}
        self.port = free_port()

    def gear(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gear_plugin", *words]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)

    def token(self) -> Token:
        return Token.parse(self.gear("token").stdout)

    def nodes(self) -> Members:
        return Members.from_json(json.loads(self.gear("nodes", "--json").stdout))

    @contextlib.contextmanager
    def manager(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A manager that listens, ended by SIGTERM as a service is."""
        listen = f"127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "gear_plugin", "manager", "--listen", listen, *words]
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=self.environ, stderr=log)
        try:
            eventually(
                lambda: "gear nodes" in self.log() or process.poll() is not None,
                "the manager to listen",
                timeout_s=START_S,
            )
            assert process.poll() is None, self.log()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, self.log()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def request(
        self, method: str, path: str, token: Token, body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {"Authorization": token.header()}
        with urllib3.PoolManager(retries=False, timeout=60) as pools:
            return pools.request(method, url, body=body, headers=headers)

    def ask(self, method: str, path: str, token: Token, asked: object = None) -> Any:
        body = None if asked is None else json.dumps(asked).encode()
        answer = self.request(method, path, token, body)
        assert answer.status == 200, answer.data
        return answer.json()


@contextlib.contextmanager
def node_port(node: str, cluster: str) -> Iterator[str]:
    """What answers `GET /info` as *node*; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"node": node, "cluster": cluster}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_from_the_first_start_to_a_dead_node(tmp_path: Path) -> None:
    """
    A manager says what to do next; a node joins, is seen, dies, and is missed.
    The token is the same before and after.
    """
    machine = Machine(tmp_path / "m")
    with machine.manager("--store-for-nodes", "nfs://10.0.0.9/gear"):
        token = machine.token()
        said = machine.log()
        assert f"cluster {token.cluster} listens on 127.0.0.1:{machine.port}" in said
        assert "store nfs://10.0.0.9/gear, catalog (their own setting)" in said
        assert token.secret not in said
        with node_port(A, token.cluster) as address:
            joined = machine.ask("POST", "/join", token, {"node": A, "address": address})
            assert joined["settings"] == {"store": "nfs://10.0.0.9/gear", "catalog": ""}
            assert machine.nodes().nodes == (Member(A, address),)
        version = joined["version"]
        news = machine.ask("GET", f"/nodes?version={version}&wait=30", token)
        assert Members.from_json(news).nodes == (Member(A, address, is_live=False),)
        assert machine.gear("nodes").stdout.splitlines()[1].split() == [A, address, "dead"]
        # Another machine, to which the catalog is a file of somebody else's.
        known = {"manager": f"127.0.0.1:{machine.port}", "token": token.text()}
        other = Machine(tmp_path / "other", **known)
        assert [node.node for node in other.nodes().nodes] == [A]
        assert not (tmp_path / "other/catalog.sqlite").exists()
    with machine.manager():
        assert machine.token() == token
        assert machine.ask("GET", "/nodes", token)["version"] == news["version"]


def test_two_managers_are_one_cluster(tmp_path: Path, etcd_url: str) -> None:
    """With etcd: what one is told the other knows, and nodes are given its address."""
    machines = [Machine(tmp_path / name, catalog=etcd_url) for name in "mn"]
    with machines[0].manager(), machines[1].manager():
        token = machines[0].token()
        assert machines[1].token() == token
        with node_port(A, token.cluster) as address:
            joined = machines[0].ask("POST", "/join", token, {"node": A, "address": address})
            assert joined["settings"]["catalog"] == etcd_url
            news = machines[1].ask("GET", "/nodes?version=0&wait=30", token)
            assert Members.from_json(news).nodes == (Member(A, address),)
            left = machines[1].ask("POST", "/leave", token, {"node": A})
            assert left == {}
            machines[0].ask("GET", f"/nodes?version={joined['version']}&wait=30", token)
            assert machines[0].nodes().nodes == ()


def test_reads_go_on_while_etcd_is_down(tmp_path: Path) -> None:
    """
    Nodes and objects are handed out; what must be written fails in bounded time,
    and works when etcd is back, without a restart.
    """
    etcd = EtcdServer(tmp_path / "etcd")
    etcd.start()
    url = f"etcd://127.0.0.1:{etcd.port}"
    machine = Machine(tmp_path / "m", catalog=url, catalog_timeout_s=1)
    content = b"an object"
    cid = Digest.of(content)
    try:
        with machine.manager():
            token = machine.token()
            joined = machine.ask("POST", "/join", token, {"node": A, "address": ":2020"})
            machine.request("POST", f"/put/{cid.hex}/{cid}", token, content)
            etcd.stop()
            nodes = machine.ask("GET", "/nodes", token)["nodes"]
            assert [node["node"] for node in nodes] == [A]
            assert machine.request("POST", f"/get/{cid}", token).data == content
            assert machine.request("POST", f"/get/{cid.hex}", token).status in (503, 504)
            refused = machine.request("POST", "/join", token, b'{"node": "%s"}' % A.encode())
            assert refused.status == 400  # before the catalog is asked
            asked = json.dumps({"node": B, "address": ":2020"}).encode()
            assert machine.request("POST", "/join", token, asked).status in (503, 504)
            etcd.start()
            eventually(
                lambda: machine.request("POST", "/join", token, asked).status == 200,
                "the join to work",
                timeout_s=30,
            )
            news = machine.ask("GET", f"/nodes?version={joined['version']}&wait=30", token)
            assert news["version"] > joined["version"]
    finally:
        etcd.stop()


def test_with_tls_both_sides_show_certificates(tmp_path: Path) -> None:
    """With a CA nobody without a certificate of it gets as far as the token."""
    made = certificates.make(tmp_path / "tls")
    cert, key, ca = made / "server.pem", made / "server.key", made / "ca.pem"
    machine = Machine(tmp_path / "m", tls_cert=cert, tls_key=key, tls_ca=ca)
    with machine.manager():
        token = machine.token()
        url = f"https://127.0.0.1:{machine.port}/nodes"
        headers = {"Authorization": token.header()}
        context = ssl.create_default_context(cafile=ca)
        with (
            urllib3.PoolManager(ssl_context=context, retries=False) as pools,
            pytest.raises(urllib3.exceptions.HTTPError, match=r"certificate required|reset|EOF"),
        ):
            pools.request("GET", url, headers=headers)
        context.load_cert_chain(cert, key)
        with urllib3.PoolManager(ssl_context=context, retries=False) as pools:
            assert pools.request("GET", url, headers=headers).json() == {"version": 0, "nodes": []}
        with (
            urllib3.PoolManager(retries=False) as pools,
            pytest.raises(urllib3.exceptions.HTTPError),
        ):
            pools.request("GET", url.replace("https", "http"), headers=headers)


def test_a_taken_port_is_said_at_once(tmp_path: Path) -> None:
    """In one line, before anything else."""
    machine = Machine(tmp_path / "m")
    with socket.create_server(("127.0.0.1", machine.port)):
        ended = machine.gear("manager", "--listen", f"127.0.0.1:{machine.port}")
    assert ended.stderr == (
        f"gear: 127.0.0.1:{machine.port} is taken; "
        "stop who listens there, or listen on another port\n"
    )
    assert ended.returncode == cli.exit_code(Conflict(""))


@pytest.mark.parametrize(
    ("words", "settings", "said", "kind"),
    [
        (["--listen", "2019"], {}, "--listen: not HOST:PORT: '2019'", BadConfig),
        (["--listen", "192.0.2.1:2019"], {}, "cannot listen on 192.0.2.1:2019", BadConfig),
        ([], {"tls_cert": "/gone", "tls_key": "/gone"}, "cannot read /gone", BadConfig),
        ([], {"tls_ca": "/gone"}, "'tls_cert' is missing", BadConfig),
        ([], {"catalog": "etcd://127.0.0.1:1"}, "no etcd answers", SourceUnavailable),
        ([], {"catalog": "sqlite:////dev/null/x"}, "cannot", BadConfig),
    ],
)
def test_what_prevents_a_start_is_one_line(
    tmp_path: Path, words: list[str], settings: dict[str, str], said: str, kind: type
) -> None:
    """And the status of its kind."""
    machine = Machine(tmp_path / "m", **settings)
    ended = machine.gear("manager", *(words or ["--listen", f"127.0.0.1:{machine.port}"]))
    assert ended.stderr.startswith("gear: ")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.returncode == cli.exit_code(kind(""))


def test_a_missing_store_is_no_reason_not_to_start(tmp_path: Path) -> None:
    """It is said, and the cluster is held together meanwhile."""
    machine = Machine(tmp_path / "m")
    (machine.folder / "store").mkdir()  # a share that is not mounted
    with machine.manager():
        assert "holds no object store" in machine.log()
        token = machine.token()
        assert machine.ask("POST", "/join", token, {"node": B, "address": ":2020"})["node"] == B


def test_a_manager_stays_who_it_is(tmp_path: Path) -> None:
    """After a restart, and not who another one on this machine is."""
    one = manager_id(tmp_path, "0.0.0.0:2019")
    assert manager_id(tmp_path, "0.0.0.0:2019") == one
    assert len({one, manager_id(tmp_path, "0.0.0.0:2018")}) == 2
    assert len(one) == 32

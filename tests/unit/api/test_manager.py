"""The manager's port: each call, its refusals, and what must not hang."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gear_plugin.api import manager_calls, openapi
from gear_plugin.api.manager import STORE_PLACES, Manager, manager_app
from gear_plugin.api.metrics import CheckTimes
from gear_plugin.catalog import MemoryCatalog, MemoryRoster
from gear_plugin.cluster import Members, Settings, Token
from gear_plugin.content import MemoryStore, Put, Relay
from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import SourceUnavailable, StorageFull
from gear_plugin.jobs.lookout import Lookout
from tests.waiting import eventually

A, B = "a" * 32, "b" * 32
OID = object_id("nginx:1.25", b"etc/nginx.conf")
CONTENT = b"worker_processes auto;\n"
CID = Digest.of(CONTENT)
LONG_S = 60.0

OTHER = Token("0" * 16, "1" * 64)
"""Of another cluster."""


class Store(MemoryStore):
    """A store that can hang or fail."""

    def __init__(self) -> None:
        super().__init__("store /mnt")
        self.gate = threading.Event()
        self.gate.set()
        self.breaks_at: int | None = None
        self.failure: Exception | None = None

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        self.gate.wait(LONG_S)
        with super().read(digest) as chunks:
            yield self._broken(b"".join(chunks))

    def put_all(
        self, objects: Sequence[tuple[Digest, Path]], advance: Callable[[int], None]
    ) -> list[Put]:
        self.gate.wait(LONG_S)
        if self.failure is not None:
            raise self.failure
        return super().put_all(objects, advance)

    def _broken(self, content: bytes) -> Iterator[bytes]:
        yield content[: self.breaks_at]
        if self.breaks_at is not None:
            raise SourceUnavailable("the share went away")


class Catalog(MemoryCatalog):
    """One that can be down."""

    is_down = False

    def name_object(self, oid: str, digest: Digest) -> None:
        if self.is_down:
            raise SourceUnavailable("no etcd answers")
        super().name_object(oid, digest)


class Cluster:
    """A manager's app over collaborators in memory, and a client with the token."""

    def __init__(self, folder: Path) -> None:
        self.store, self.catalog, self.roster = Store(), Catalog(), MemoryRoster()
        self.lookout = Lookout(self.roster, limit=8)
        self.lookout.start()
        eventually(lambda: self.lookout.wait(-1, LONG_S) is not None)
        self.incoming = folder / "incoming"
        self.token = self.roster.identity()
        self.check_times = CheckTimes()
        self.manager = Manager(
            token=self.token,
            settings=Settings("nfs://10.0.0.9/gear", "etcd://10.0.0.8"),
            roster=self.roster,
            lookout=self.lookout,
            catalog=self.catalog,
            relay=Relay(self.store, stall_s=0.3, workers=4),
            incoming=self.incoming,
            check_times=self.check_times,
        )
        self.app: Flask = manager_app(self.manager)

    def client(self, host: str = "10.0.0.1") -> FlaskClient:
        client = self.app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = self.token.header()
        client.environ_base["REMOTE_ADDR"] = host
        return client

    def join(self, node: str, address: str = ":2020", host: str = "10.0.0.1") -> TestResponse:
        return self.client(host).post("/join", json={"node": node, "address": address})

    def put(self, content: bytes, oid: str = OID, cid: Digest = CID) -> TestResponse:
        return self.client().post(f"/put/{oid}/{cid}", data=content, buffered=True)

    def get(self, name: str) -> TestResponse:
        return self.client().post(f"/get/{name}", buffered=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.store.gate.set()
    cluster.lookout.stop()


def error(answer: TestResponse) -> tuple[int, str]:
    """Status and class of a failure."""
    assert isinstance(answer.json, dict)
    assert answer.json["message"]
    return answer.status_code, answer.json["error"]


def in_thread(call: Callable[[], TestResponse]) -> list[TestResponse]:
    """Where the answer of *call*, made in another thread, will be."""
    answers: list[TestResponse] = []
    threading.Thread(target=lambda: answers.append(call()), daemon=True).start()
    return answers


def test_a_node_that_joins_gets_all_it_needs(cluster: Cluster) -> None:
    """Its own address as others reach it, the settings, and the nodes."""
    cluster.join(B, "node-b.example:2021")
    answer = cluster.join(A, ":2020", host="10.0.0.7")
    assert answer.json == {
        "cluster": cluster.token.cluster,
        "node": A,
        "address": "10.0.0.7:2020",
        "settings": {"store": "nfs://10.0.0.9/gear", "catalog": "etcd://10.0.0.8"},
        "version": 2,
        "nodes": [
            {"node": A, "address": "10.0.0.7:2020", "is_live": True},
            {"node": B, "address": "node-b.example:2021", "is_live": True},
        ],
    }


def test_settings_are_told_to_who_does_not_join(cluster: Cluster) -> None:
    """As `POST /join` has them; and no node is there afterwards."""
    assert cluster.client().get("/settings").json == {
        "cluster": cluster.manager.token.cluster,
        "settings": {"store": "nfs://10.0.0.9/gear", "catalog": "etcd://10.0.0.8"},
    }
    assert cluster.client().get("/nodes").json["nodes"] == []  # type: ignore[index]


@pytest.mark.parametrize(
    ("host", "address"),
    [("fd00::7", "[fd00::7]:2020"), ("::ffff:10.0.0.7", "10.0.0.7:2020")],
)
def test_hosts_of_ipv6(cluster: Cluster, host: str, address: str) -> None:
    """In brackets; IPv4 is itself."""
    assert cluster.join(A, host=host).json["address"] == address  # type: ignore[index]


def test_who_leaves_is_off_the_list(cluster: Cluster) -> None:
    """At once, and without complaint a second time."""
    cluster.join(A)
    for _ in range(2):
        assert cluster.client().post("/leave", json={"node": A}).json == {}
        assert cluster.client().get("/nodes").json == {"version": 2, "nodes": []}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/join", {}),
        ("/join", {"node": A}),
        ("/join", {"node": "../../etc", "address": ":2020"}),
        ("/join", {"node": A, "address": ":99999"}),
        ("/join", {"node": A, "address": "host name:2020"}),
        ("/join", {"node": A, "address": ":2020", "version": "x" * 101}),
        ("/join", {"node": A, "address": ":2020", "version": 7}),
        ("/leave", {"node": A.upper()}),
    ],
)
def test_malformed_bodies_are_refused(cluster: Cluster, path: str, asked: dict[str, Any]) -> None:
    """And change nothing."""
    assert error(cluster.client().post(path, json=asked)) == (400, "BadRequest")
    assert cluster.roster.members() == Members(0, ())


def test_nodes_come_at_once(cluster: Cluster) -> None:
    """Without a version, and with another one, however long the wait."""
    cluster.join(A)
    nodes = [{"node": A, "address": "10.0.0.1:2020", "is_live": True}]
    for query in ("", "?version=0&wait=30", "?version=1", "?version=1&wait=0"):
        answer = cluster.client().get(f"/nodes{query}")
        assert answer.json == {"version": 1, "nodes": nodes}


def test_nodes_wait_for_news(cluster: Cluster) -> None:
    """The answer comes with the change, also with one that another manager made."""
    cluster.join(A)
    waiting = in_thread(lambda: cluster.client().get("/nodes?version=1&wait=30"))
    eventually(lambda: cluster.lookout.waiting == 1)
    assert waiting == []
    cluster.roster.set_live({A: False})
    eventually(lambda: waiting, "the answer")
    assert waiting[0].json["version"] == 2  # type: ignore[index]


@pytest.mark.parametrize(
    "query", ["version=x", "version=-1", "version=1&wait=x", "version=1&wait=nan", "version=inf"]
)
def test_malformed_queries_are_refused(cluster: Cluster, query: str) -> None:
    """One line, as everywhere."""
    assert error(cluster.client().get(f"/nodes?{query}")) == (400, "BadRequest")


def test_an_object_goes_in_and_comes_out(cluster: Cluster) -> None:
    """By its OID and by its CID; to put it again changes nothing."""
    assert cluster.put(CONTENT).json == {"cid": str(CID), "is_new": True}
    assert cluster.put(CONTENT).json == {"cid": str(CID), "is_new": False}
    for name in (OID, str(CID)):
        answer = cluster.get(name)
        assert (answer.status_code, answer.data) == (200, CONTENT)
        assert answer.content_type == "application/octet-stream"
    assert cluster.catalog.loose_objects() == {CID}
    assert list(cluster.incoming.iterdir()) == []


def test_an_empty_object(cluster: Cluster) -> None:
    """Is one."""
    assert cluster.put(b"", cid=Digest.of(b"")).status_code == 200
    assert cluster.get(OID).data == b""


def test_what_is_not_what_it_says_is_refused(cluster: Cluster) -> None:
    """Neither stored nor named, and nothing is left behind."""
    assert error(cluster.put(CONTENT + b"!")) == (422, "ContentCorrupt")
    assert not cluster.store.has(CID)
    assert error(cluster.get(OID)) == (404, "ContentNotFound")
    assert list(cluster.incoming.iterdir()) == []


@pytest.mark.parametrize(
    ("oid", "cid"), [("x", str(CID)), (OID.upper(), str(CID)), (OID, CID.hex), (OID, "md5:0")]
)
def test_malformed_names_are_refused(cluster: Cluster, oid: str, cid: str) -> None:
    """Before anything is read."""
    assert error(cluster.client().post(f"/put/{oid}/{cid}", data=b"")) == (400, "BadDigest")


@pytest.mark.parametrize("name", ["x", CID.hex[1:], f"sha256:{CID.hex[1:]}", f"md5:{CID.hex}"])
def test_malformed_names_are_not_looked_for(cluster: Cluster, name: str) -> None:
    """Nor answered with "no such"."""
    assert error(cluster.get(name)) == (400, "BadDigest")


def test_unknown_objects(cluster: Cluster) -> None:
    """Of neither kind of name."""
    for name in (OID, str(CID)):
        assert error(cluster.get(name)) == (404, "ContentNotFound")


def test_a_full_store_says_so(cluster: Cluster) -> None:
    """And the object has no name."""
    cluster.store.failure = StorageFull("store /mnt is full")
    assert error(cluster.put(CONTENT)) == (507, "StorageFull")
    assert list(cluster.incoming.iterdir()) == []
    assert cluster.catalog.loose_objects() == frozenset()


def test_an_upload_without_a_catalog_fails(cluster: Cluster) -> None:
    """It can be repeated as a whole."""
    cluster.catalog.is_down = True
    assert error(cluster.put(CONTENT)) == (503, "SourceUnavailable")
    assert list(cluster.incoming.iterdir()) == []
    cluster.catalog.is_down = False
    assert cluster.put(CONTENT).json == {"cid": str(CID), "is_new": False}


class Cut(io.RawIOBase):
    """A body that breaks off."""

    def __init__(self) -> None:
        self.left = [CONTENT[:5]]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.left:
            raise ConnectionResetError("reset by peer")
        piece = self.left.pop()
        buffer[: len(piece)] = piece
        return len(piece)


def test_an_upload_that_breaks_off_leaves_nothing(cluster: Cluster) -> None:
    """Neither a file nor a place taken."""
    for _ in range(STORE_PLACES + 1):
        answer = cluster.client().post(
            f"/put/{OID}/{CID}",
            environ_overrides={
                "wsgi.input": io.BufferedReader(Cut()),
                "wsgi.input_terminated": True,
            },
        )
        assert answer.status_code == 400
    assert list(cluster.incoming.iterdir()) == []
    assert cluster.put(CONTENT).status_code == 200


def test_a_hung_store_blocks_nobody(cluster: Cluster) -> None:
    """Who asks for an object is told in time; who asks for anything else does not notice."""
    cluster.put(CONTENT)
    cluster.store.gate.clear()
    uploads = [in_thread(lambda: cluster.put(b"x", cid=Digest.of(b"x"))) for _ in range(3)]
    downloads = [in_thread(lambda: cluster.get(str(CID))) for _ in range(3)]
    assert cluster.join(A).status_code == 200
    assert cluster.client().get("/nodes").status_code == 200
    assert cluster.client().get("/healthz").json == {"ok": True}
    for waiting in uploads + downloads:
        eventually(lambda: waiting, "an answer")  # noqa: B023 - used at once
        assert error(waiting[0]) == (504, "TimedOut")
    assert list(cluster.incoming.iterdir()) == []
    cluster.store.gate.set()
    assert cluster.get(OID).data == CONTENT


def test_a_store_that_breaks_off_breaks_the_answer_off(cluster: Cluster) -> None:
    """It must not look like the whole object."""
    cluster.put(CONTENT)
    cluster.store.breaks_at = 4
    with pytest.raises(ConnectionResetError):
        cluster.get(OID)


def test_places_are_given_back(cluster: Cluster) -> None:
    """Of readers that take all, a part, or nothing, and of those that are refused."""
    cluster.put(CONTENT)
    for _ in range(STORE_PLACES + 1):
        assert cluster.get(OID).status_code == 200
        cluster.client().post(f"/get/{OID}", buffered=False).close()
        assert cluster.get(str(Digest.of(b"none"))).status_code == 404


def test_too_many_downloads_are_told_so(cluster: Cluster) -> None:
    """At once, while the others go on."""
    cluster.put(CONTENT)
    held = [cluster.client().post(f"/get/{OID}") for _ in range(STORE_PLACES)]
    assert error(cluster.get(OID)) == (503, "SourceUnavailable")
    for answer in held:
        answer.close()
    assert cluster.get(OID).data == CONTENT


@pytest.mark.parametrize("header", [None, "", "Bearer nonsense", OTHER.header()])
def test_nothing_is_open_but_health(cluster: Cluster, header: str | None) -> None:
    """Whatever is asked for, whether it exists or not."""
    client = cluster.app.test_client()
    headers = {} if header is None else {"Authorization": header}
    assert client.get("/healthz", headers=headers).status_code == 200
    calls = openapi.routes(cluster.app) | {("GET", "/nonsense")}
    for method, path in calls - {("GET", "/healthz")}:
        where = path.format(oid=OID, cid=CID, name=OID)
        answer = client.open(where, method=method, headers=headers)
        assert error(answer) == (401, "AccessDenied"), path
    assert cluster.roster.members().nodes == ()


def test_the_token_of_another_cluster_is_named(cluster: Cluster) -> None:
    """Both ids, no secret."""
    other = Token.new()
    answer = cluster.app.test_client().get("/nodes", headers={"Authorization": other.header()})
    assert other.cluster in answer.text
    assert cluster.token.cluster in answer.text
    assert other.secret not in answer.text


def test_metrics(cluster: Cluster) -> None:
    """Nodes, requests by route, bytes and checks."""
    cluster.join(A)
    cluster.join(B)
    cluster.lookout.offer(cluster.roster.set_live({A: False}))
    cluster.put(CONTENT)
    cluster.get(OID)
    cluster.get("x" * 10)
    cluster.check_times.observe(0.003, is_seen=True)
    cluster.app.test_client().get("/nonsense")
    answer = cluster.client().get("/metrics")
    assert answer.content_type.startswith("text/plain; version=")
    lines = set(answer.text.splitlines())
    size = float(len(CONTENT))
    assert lines >= {
        'gear_manager_nodes{state="live"} 1.0',
        'gear_manager_nodes{state="dead"} 1.0',
        "gear_manager_waiting_requests 0.0",
        f"gear_manager_received_bytes_total {size}",
        f"gear_manager_sent_bytes_total {size}",
        'gear_http_requests_total{method="POST",route="/join",status="200"} 2.0',
        'gear_http_requests_total{method="POST",route="/get/<name>",status="400"} 1.0',
        'gear_http_requests_total{method="none",route="none",status="401"} 1.0',
        'gear_http_request_duration_seconds_count{method="POST",route="/put/<oid>/<cid>"} 1.0',
        'gear_manager_check_duration_seconds_count{outcome="answered"} 1.0',
    }


def test_the_document_is_true(cluster: Cluster) -> None:
    """Every call that the app has is in it, and no other."""
    described = cluster.client().get("/openapi.json").json
    assert described["openapi"].startswith("3.")  # type: ignore[index]
    found = {
        (method.upper(), path)
        for path, operations in described["paths"].items()  # type: ignore[index]
        for method in operations
    }
    assert found == openapi.routes(cluster.app)
    for call in manager_calls.CALLS:
        assert set(call.parts) == set(openapi._TEMPLATE_PART.findall(call.path))


def test_the_document_describes_the_answers(cluster: Cluster) -> None:
    """The fields of a real answer are those of the schema, down to the nodes."""
    answers = {
        "/join": cluster.join(A).json,
        "/nodes": cluster.client().get("/nodes").json,
        "/leave": cluster.client().post("/leave", json={"node": B}).json,
        "/healthz": cluster.client().get("/healthz").json,
        "/put/{oid}/{cid}": cluster.put(CONTENT).json,
    }
    schemas = {call.path: call.answer for call in manager_calls.CALLS}
    for path, answer in answers.items():
        _assert_fits(answer, schemas[path], path)


def _assert_fits(value: Any, schema: dict[str, Any], where: str) -> None:
    if schema["type"] == "array":
        for element in value:
            _assert_fits(element, schema["items"], where)
    elif schema["type"] == "object":
        properties = schema.get("properties", {})
        assert set(value) == set(properties), where
        for name, below in properties.items():
            _assert_fits(value[name], below, f"{where} {name}")
    else:
        kinds = {"string": str, "integer": int, "boolean": bool}
        assert type(value) is kinds[schema["type"]], where


def test_a_long_object_streams(cluster: Cluster) -> None:
    """More than a chunk."""
    content = hashlib.sha256(b"seed").digest() * 100_000
    assert cluster.put(content, cid=Digest.of(content)).status_code == 200
    assert cluster.get(OID).data == content


def test_leftovers_of_a_crash_go(cluster: Cluster) -> None:
    """At the next start, when they are no other manager's upload."""
    old, new = cluster.incoming / ".tmp-old", cluster.incoming / ".tmp-new"
    for path in (old, new):
        path.touch()
    os.utime(old, (1_000_000, 1_000_000))
    manager_app(dataclasses.replace(cluster.manager, check_times=CheckTimes()))
    assert list(cluster.incoming.iterdir()) == [new]


def test_a_manager_is_a_plain_value(cluster: Cluster) -> None:
    """Its secret is not in its repr."""
    assert cluster.token.secret not in repr(dataclasses.replace(cluster.manager))

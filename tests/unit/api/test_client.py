"""The node's port: every call, over fakes."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from gear_plugin.api.client import PortLimits
from gear_plugin.api.openapi import routes
from gear_plugin.cluster import Token
from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import DaemonUnavailable, SourceUnavailable
from tests.unit.api.port_node import NODE, PortNode
from tests.waiting import eventually

ABSENT = (2**64 - 1).to_bytes(8, "big")


@pytest.fixture
def node(tmp_path: Path) -> PortNode:
    return PortNode(tmp_path)


def failure(response: TestResponse) -> tuple[int, str]:
    answer = response.get_json()
    assert answer["message"]
    return response.status_code, answer["error"]


def record(content: bytes) -> bytes:
    return Digest.of(content).raw + len(content).to_bytes(8, "big") + content


# --- the door ------------------------------------------------------------------


def test_nothing_but_health_goes_without_the_token(node: PortNode) -> None:
    """
    Every route, found in the app itself; another cluster's token is named.
    """
    bare = node.app.test_client()
    checked = 0
    for rule in node.app.url_map.iter_rules():
        path = str(rule).replace("<path:rest>", "a/1/b").replace("<name>", "0" * 64)
        for method in (rule.methods or set()) & {"GET", "POST"}:
            status = bare.open(path, method=method).status_code
            assert status == (200 if path == "/healthz" else 401), path
            checked += 1
    assert checked >= 9
    other = Token.new()
    answer = bare.get("/info", headers={"Authorization": other.header()})
    assert failure(answer) == (401, "AccessDenied")
    assert other.cluster in answer.get_json()["message"]
    assert other.secret not in answer.text


def test_metrics_count_what_was_refused(node: PortNode) -> None:
    """
    So that an operator sees a node with a wrong token.
    """
    assert node.app.test_client().get("/info").status_code == 401
    assert 'gear_port_refused_total{reason="token"} 1.0' in node.http.get("/metrics").text


# --- downloads -----------------------------------------------------------------


def test_download_gives_what_is_cached(node: PortNode) -> None:
    """
    With its length, and without asking the client process.
    """
    digest = node.publish(b"content")
    answer = node.http.post(f"/download/{digest}", headers={"Gear-Node": NODE})
    assert (answer.status_code, answer.data) == (200, b"content")
    assert answer.content_length == 7
    assert answer.content_type == "application/octet-stream"
    assert node.client.obtained == []


def test_download_of_an_empty_object(node: PortNode) -> None:
    answer = node.http.post(f"/download/{node.publish(b'')}")
    assert (answer.status_code, answer.data, answer.content_length) == (200, b"", 0)


def test_download_gets_what_is_missing(node: PortNode) -> None:
    """
    With the size that the asker knows.
    """
    digest = Digest.of(b"elsewhere")
    node.client.elsewhere[digest] = b"elsewhere"
    answer = node.http.post(f"/download/{digest}?size=9")
    assert (answer.status_code, answer.data) == (200, b"elsewhere")
    assert node.client.obtained == [(digest, 9)]


def test_download_of_what_is_cached_alone(node: PortNode) -> None:
    """
    Nothing is got for it.
    """
    digest = Digest.of(b"elsewhere")
    node.client.elsewhere[digest] = b"elsewhere"
    answer = node.http.post(f"/download/{digest}?cached=1")
    assert failure(answer) == (404, "ContentNotFound")
    assert node.client.obtained == []
    answer = node.http.post(f"/download/{node.publish(b'here')}?cached=1")
    assert (answer.status_code, answer.data) == (200, b"here")


def test_download_by_object_id_says_the_content_id(node: PortNode) -> None:
    """
    The asker could not verify it otherwise.
    """
    digest = node.publish(b"a file")
    node.record("library/nginx:1.25", {b"etc/a": digest})
    answer = node.http.post(f"/download/{object_id('library/nginx:1.25', b'etc/a')}")
    assert answer.data == b"a file"
    assert answer.headers["Gear-Cid"] == str(digest)
    assert failure(node.http.post(f"/download/{'0' * 64}")) == (404, "ContentNotFound")


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/download/sha256:12", {}),
        ("/download/xyz", {}),
        ("/download/" + "A" * 64, {}),
        ("/download/..%2f..%2fetc%2fpasswd", {}),
        (f"/download/sha256:{'0' * 64}?size=-1", {}),
        (f"/download/sha256:{'0' * 64}?size=1e3", {}),
        (f"/download/sha256:{'0' * 64}?size=" + "9" * 40, {}),
        (f"/download/sha256:{'0' * 64}", {"Gear-Node": "me"}),
    ],
)
def test_what_does_not_parse_is_refused(node: PortNode, path: str, headers: dict[str, str]) -> None:
    """
    Before anybody is asked.
    """
    answer = node.http.post(path, headers=headers)
    assert answer.status_code in (400, 404)
    assert node.client.obtained == []


def test_failures_keep_their_class(node: PortNode) -> None:
    """
    Not to be had, and not answered, are different things to who asks.
    """
    digest = Digest.of(b"nobody has it")
    assert failure(node.http.post(f"/download/{digest}")) == (404, "ContentNotFound")
    node.client.error = SourceUnavailable("the store does not answer")
    assert failure(node.http.post(f"/download/{digest}")) == (503, "SourceUnavailable")


def test_private_objects_are_never_served(node: PortNode) -> None:
    """
    Neither by their content id nor in a batch.
    """
    digest = Digest.of(b"secret")
    path = node.root / "private" / ("ab" * 32) / digest.shard_path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"secret")
    assert node.http.post(f"/download/{digest}").status_code == 404
    assert node.http.post("/batch", data=digest.raw).data == digest.raw + ABSENT


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "socket"])
def test_only_files_are_served(node: PortNode, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """
    Whatever is under an object's name that the cache did not put there.
    """
    digest = Digest.of(b"x")
    path = node.root / "public" / digest.shard_path
    path.parent.mkdir(parents=True)
    if kind == "link":
        (node.root / "target").write_bytes(b"x")
        path.symlink_to(node.root / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        import socket
        import stat

        os.mknod(path, stat.S_IFSOCK | 0o600)
        assert socket.AF_UNIX
    node.client.error = SourceUnavailable("nor there")
    assert node.http.post(f"/download/{digest}").status_code == 503
    assert node.http.post("/batch", data=digest.raw).data == digest.raw + ABSENT
    assert "is not a file" in caplog.text


def test_an_object_that_vanishes_again_is_not_found(node: PortNode) -> None:
    """
    A full cache may drop it at once.
    """
    digest = Digest.of(b"x")
    node.client.obtain = lambda *_: None  # type: ignore[method-assign]
    assert failure(node.http.post(f"/download/{digest}")) == (404, "ContentNotFound")


def test_downloads_at_once_are_bounded(tmp_path: Path) -> None:
    """
    One more is told so; when one has ended, the next is served.
    """
    node = PortNode(tmp_path, limits=PortLimits(sending=1))
    digest = node.publish(b"content")
    held = node.http.post(f"/download/{digest}", buffered=False)
    assert failure(node.http.post(f"/download/{digest}")) == (503, "SourceUnavailable")
    assert failure(node.http.post("/batch", data=digest.raw)) == (503, "SourceUnavailable")
    held.close()
    assert node.http.post(f"/download/{digest}").data == b"content"
    assert 'gear_port_refused_total{reason="busy"} 2.0' in node.http.get("/metrics").text


def test_failed_downloads_hold_no_slot(tmp_path: Path) -> None:
    node = PortNode(tmp_path, limits=PortLimits(sending=1, waiting=1))
    for _ in range(3):
        assert node.http.post(f"/download/{Digest.of(b'?')}").status_code == 404
        assert node.http.post("/batch", data=b"short").status_code == 400
        assert node.http.post("/batch", data=Digest.of(b"?").raw).status_code == 200


def test_a_store_that_stalls_does_not_stop_what_is_cached(tmp_path: Path) -> None:
    """
    Requests that wait for it are bounded apart.
    """
    node = PortNode(tmp_path, limits=PortLimits(sending=3, waiting=1))
    cached, missing = node.publish(b"here"), Digest.of(b"there")
    node.client.elsewhere[missing] = b"there"
    node.client.allowed.clear()
    answers: list[TestResponse] = []
    ask = threading.Thread(target=lambda: answers.append(node.http.post(f"/download/{missing}")))
    ask.start()
    try:
        eventually(lambda: node.client.obtained)
        assert failure(node.http.post(f"/download/{missing}")) == (503, "SourceUnavailable")
        assert node.http.post(f"/download/{cached}").data == b"here"
        assert node.http.post("/batch", data=cached.raw).data == record(b"here")
    finally:
        node.client.allowed.set()
        ask.join()
    assert answers[0].data == b"there"


def test_upload_limit_keeps_content_whole(tmp_path: Path) -> None:
    """
    In pieces instead of with sendfile.
    """
    node = PortNode(tmp_path, upload_limit=1 << 30)
    content = os.urandom(700_000)
    digest = node.publish(content)
    answer = node.http.post(f"/download/{digest}")
    assert answer.data == content
    assert answer.content_length == len(content)
    assert node.http.post("/batch", data=digest.raw).data == record(content)
    assert 'gear_port_sent_bytes_total{call="download"} 700000.0' in node.http.get("/metrics").text


# --- batches -------------------------------------------------------------------


def test_batch_keeps_the_order_asked(node: PortNode) -> None:
    """
    Cached, got now, and not to be had; some twice.
    """
    here, large = node.publish(b"here"), node.publish(b"l" * 1_000_000)
    there, nowhere = Digest.of(b"there"), Digest.of(b"nowhere")
    node.client.elsewhere[there] = b"there"
    asked = [here, nowhere, there, large, here]
    answer = node.http.post("/batch", data=b"".join(digest.raw for digest in asked))
    assert answer.status_code == 200
    assert answer.data == b"".join(
        (
            record(b"here"),
            nowhere.raw + ABSENT,
            record(b"there"),
            record(b"l" * 1_000_000),
            record(b"here"),
        )
    )
    text = node.http.get("/metrics").text
    assert 'gear_port_sent_objects_total{call="batch"} 4.0' in text
    assert "gear_port_absent_objects_total 1.0" in text


@pytest.mark.parametrize("size", [0, 1, 31, 33, 32 * 4097])
def test_batch_bodies_are_whole_digests(node: PortNode, size: int) -> None:
    assert failure(node.http.post("/batch", data=b"x" * size)) == (400, "BadRequest")


def test_bodies_are_bounded(node: PortNode) -> None:
    assert node.http.post("/batch", data=b"x" * (2 << 20)).status_code in (400, 413)


# --- get -----------------------------------------------------------------------


@pytest.fixture
def nginx(node: PortNode) -> Iterator[PortNode]:
    node.record("library/nginx:1.25", {b"etc/nginx/a b.conf": node.publish(b"conf")})
    yield node


@pytest.mark.parametrize(
    "path",
    [
        "library/nginx/1.25/etc/nginx/a%20b.conf",
        "library%2Fnginx/1.25/etc/nginx/a%20b.conf",
        "library/nginx/1.25/etc%2fnginx%2fa%20b.conf",
        "library/nginx/1.25//etc/nginx/a%20b.conf",
        "library%2Fnginx/1.25/%2Fetc/nginx/a%20b.conf?x=/",
        "library/nginx/1%2E25/etc/nginx/a%20b.conf",
    ],
)
def test_get_understands_slashes(nginx: PortNode, path: str) -> None:
    """
    In names, in paths, and percent-encoded.
    """
    answer = nginx.http.post(f"/get/{path}")
    assert answer.get_json() == {"cid": str(Digest.of(b"conf")), "size_bytes": 4}


def test_get_downloads(node: PortNode) -> None:
    """
    The file is in the cache afterwards.
    """
    digest = Digest.of(b"elsewhere")
    node.client.elsewhere[digest] = b"elsewhere"
    node.record("a:1", {b"f": digest})
    assert node.http.post("/get/a/1/f").get_json()["size_bytes"] == 9
    assert (node.root / "public" / digest.shard_path).read_bytes() == b"elsewhere"


def test_get_names_bytes_that_are_no_utf8(node: PortNode) -> None:
    node.record("a:1", {b"caf\xe9": node.publish(b"latin")})
    assert node.http.post("/get/a/1/caf%E9").get_json()["size_bytes"] == 5


def test_get_of_what_is_not_there(nginx: PortNode) -> None:
    """
    What was understood is in the message.
    """
    answer = nginx.http.post("/get/library/nginx/1.25/etc/passwd")
    assert failure(answer) == (404, "ContentNotFound")
    assert "library/nginx:1.25/etc/passwd" in answer.get_json()["message"]
    assert failure(nginx.http.post("/get/nginx/1.25")) == (400, "BadRequest")
    assert failure(nginx.http.post("/get/NGINX/1.25/x")) == (400, "BadRequest")


def test_get_refuses_to_guess(node: PortNode) -> None:
    """
    Two images whose names and paths read the same; %2F makes it clear.
    """
    node.record("a:b", {b"c/d": node.publish(b"one")})
    node.record("a/b:c", {b"d": node.publish(b"other")})
    assert failure(node.http.post("/get/a/b/c/d")) == (400, "BadRequest")
    assert node.http.post("/get/a%2Fb/c/d").get_json()["size_bytes"] == 5
    assert node.http.post("/get/a/b/c%2Fd").get_json()["size_bytes"] == 3


# --- the node ------------------------------------------------------------------


def test_info(node: PortNode) -> None:
    answer = node.http.get("/info").get_json()
    assert answer.pop("uptime_s") >= 0
    assert answer.pop("version")
    assert answer.pop("fetched")["objects"] == 3
    assert answer == {
        "node": NODE,
        "cluster": "00" * 8,
        "address": "10.0.0.1:2020",
        "members_version": 4,
        "cached": {"objects": 2, "size_bytes": 8192, "limit_bytes": 0},
    }


def test_a_client_process_that_is_down_shows(node: PortNode) -> None:
    """
    In /info as a failure, in /metrics as a number; what is cached is served.
    """
    digest = node.publish(b"here")
    assert "gear_client_up 1.0" in node.http.get("/metrics").text
    node.client.error = DaemonUnavailable("no Gear client")
    assert failure(node.http.get("/info")) == (503, "DaemonUnavailable")
    assert "gear_client_up 0.0" in node.http.get("/metrics").text
    assert node.http.post(f"/download/{digest}").data == b"here"


def test_metrics_show_the_client_process(node: PortNode) -> None:
    assert node.http.get("/metrics").status_code == 200
    text = node.http.get("/metrics").text
    for line in (
        "gear_cache_objects 2.0",
        "gear_cache_bytes 8192.0",
        "gear_fetched_objects_total 3.0",
        "gear_fetch_failures_total 1.0",
        'gear_source_bytes_total{source="store"} 77.0',
        'gear_http_requests_total{method="GET",route="/metrics",status="200"} 1.0',
    ):
        assert line in text


def test_upload_runs_in_the_background(node: PortNode) -> None:
    """
    202 at once; GET says how it went.
    """
    answer = node.http.post("/upload/library/nginx/1.25")
    assert answer.status_code == 202
    assert answer.get_json()["image"] == "library/nginx:1.25"
    eventually(lambda: node.http.get("/upload/library%2Fnginx/1.25").get_json()["state"] == "done")
    assert failure(node.http.get("/upload/other/1")) == (404, "ImageNotFound")
    assert failure(node.http.post("/upload/--help/1")) == (400, "BadName")
    assert failure(node.http.post("/upload/a%2F..%2Fb/1")) == (400, "BadName")


# --- the document --------------------------------------------------------------


def test_openapi_names_exactly_the_calls_there_are(node: PortNode) -> None:
    """
    Every rule of the app with its methods, and nothing else.
    """
    paths = node.http.get("/openapi.json").get_json()["paths"]
    documented = {(verb.upper(), path) for path, calls in paths.items() for verb in calls}
    assert documented == routes(node.app)


def test_openapi_is_true_of_answers(node: PortNode) -> None:
    """
    The keys of answers are those of the schemas.
    """
    document = node.http.get("/openapi.json").get_json()
    node.record("a:1", {b"f": node.publish(b"f")})
    for path, verb, answer in (
        ("/healthz", "get", node.http.get("/healthz")),
        ("/info", "get", node.http.get("/info")),
        ("/get/{rest}", "post", node.http.post("/get/a/1/f")),
        ("/upload/{rest}", "post", node.http.post("/upload/a/1")),
        ("/upload/{rest}", "get", node.http.get("/upload/a/1")),
    ):
        described = document["paths"][path][verb]["responses"][str(answer.status_code)]
        schema = described["content"]["application/json"]["schema"]
        assert set(answer.get_json()) == set(schema["properties"]), path
    failed = node.http.get("/nowhere").get_json()
    assert set(failed) == set(document["components"]["schemas"]["Error"]["properties"])


def test_every_call_is_shown_by_example(node: PortNode) -> None:
    """
    In docs/http-api.md, which has no other.
    """
    page = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text()
    section = page.partition("\n## Node\n")[2].partition("\n## Manager\n")[0]
    shown = set(re.findall(r"^### (?:GET|POST) /(\w+)", section, re.MULTILINE))
    assert shown == {path.split("/")[1].removesuffix(".json") for _, path in routes(node.app)}

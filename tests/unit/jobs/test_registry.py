"""The registry client against a registry that fails in every way."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import (
    AccessDenied,
    ArchiveMalformed,
    ContentCorrupt,
    ContentNotFound,
    GearError,
    ImageNotFound,
    SourceUnavailable,
    TimedOut,
    Unsupported,
)
from gear_plugin.jobs import Platform, Reference, Registry, oci
from gear_plugin.names import ImageId
from tests.unit.image.tars import tar
from tests.unit.jobs import layouts
from tests.unit.jobs.registries import FakeRegistry, Reply, Request, client, serving, token_reply
from tests.unit.jobs.saves import CONFIG, file

LAYER = tar(file("a", random.Random(7).randbytes(100_000)))
IMAGE = layouts.Image("1", [LAYER], CONFIG, "gzip")
(BLOB,) = IMAGE.blobs
NAMED = Digest.of(BLOB)


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with serving(FakeRegistry()) as found:
        found.add("team/app", IMAGE)
        yield found


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    found = client(tmp_path)
    yield found
    found.close()


def at(server: FakeRegistry, name: str = "team/app:1") -> Reference:
    return Reference.parse(f"{server.address}/{name}")


def read(registry: Registry, server: FakeRegistry, blob: bytes = BLOB) -> bytes:
    """The blob as the client gives it."""
    wanted = oci.Descriptor("", Digest.of(blob), len(blob))
    with registry.open_blob(at(server), wanted) as reader:
        parts = []
        while part := reader.read(10_000):
            parts.append(part)
    return b"".join(parts)


def test_a_manifest_says_what_an_image_is_made_of(registry: Registry, server: FakeRegistry) -> None:
    """
    By tag and by digest.
    """
    digest = layouts.digest(IMAGE.manifest)
    for name in ("team/app:1", f"team/app@{digest}", f"team/app:other@{digest}"):
        found = registry.manifest(at(server, name))
        assert found.digest == Digest.of(IMAGE.manifest)
        assert found.config.digest == Digest.of(IMAGE.raw_config)
        assert [layer.digest for layer in found.layers] == [NAMED]


def test_a_platform_is_chosen_from_an_index(registry: Registry, server: FakeRegistry) -> None:
    """
    As in a layout; what the index names is fetched by its digest.
    """
    arm = layouts.Image("arm", [LAYER], CONFIG | {"architecture": "arm64"})
    server.add("team/app", arm)
    index = layouts.index_bytes(IMAGE.entry(), arm.entry(), media_type=oci.DOCKER_LIST)
    server.add_manifest("team/app:multi", index, oci.DOCKER_LIST)
    image = at(server, "team/app:multi")
    found = registry.manifest(image, lambda: Platform.parse("linux/arm64/v8"))
    assert found.digest == Digest.of(arm.manifest)
    with pytest.raises(ImageNotFound, match=r"it has: linux/amd64, linux/arm64$"):
        registry.manifest(image, lambda: Platform.parse("linux/s390x"))


def test_a_blob_is_taken_up_again_where_it_broke(registry: Registry, server: FakeRegistry) -> None:
    """
    A connection that breaks costs nothing that was there already.
    """
    for cut in (1000, 0):
        server.fault("GET", "blobs", Reply(200, BLOB, cut=cut))
    assert read(registry, server) == BLOB
    assert server.asked("GET", "blobs")[-1].headers["Range"] == "bytes=1000-"


def test_a_registry_without_ranges_serves_as_well(registry: Registry, server: FakeRegistry) -> None:
    """
    What is known already is read past.
    """
    server.ranges = False
    server.fault("GET", "blobs", Reply(200, BLOB, cut=1000))
    assert read(registry, server) == BLOB


def test_attempts_are_counted_without_progress_alone(
    registry: Registry, server: FakeRegistry
) -> None:
    """
    A line that breaks every few kilobytes gets there in the end.
    """
    pieces = range(0, len(BLOB), len(BLOB) // 20)
    for start in pieces:
        where = {"Content-Range": f"bytes {start}-/{len(BLOB)}"}
        reply = Reply(206 if start else 200, BLOB[start:], where, cut=len(BLOB) // 20)
        server.fault("GET", "blobs", reply)
    assert read(registry, server) == BLOB
    assert len(server.asked("GET", "blobs")) >= len(pieces)


@pytest.mark.parametrize(
    ("fault", "expected", "words"),
    [
        (Reply(200, BLOB[:-1] + b"x"), ContentCorrupt, "sent other bytes than those of sha256"),
        (Reply(200, BLOB + b"x"), ContentCorrupt, "sent other bytes"),
        (Reply(404), ContentNotFound, "lacks sha256"),
        (Reply(500, b'{"errors": [{"message": "disk\\nfull"}]}'), SourceUnavailable, "disk full"),
        (Reply(503, b"<html>"), SourceUnavailable, "failed with status 503 to give a blob of"),
        (Reply(429, headers={"Retry-After": "0"}), SourceUnavailable, "no more requests for now"),
        (Reply(200, BLOB, cut=0), SourceUnavailable, "the connection to the registry .* broke"),
        (Reply(200, BLOB, cut=0, hang=True), SourceUnavailable, "sent nothing for 1 s"),
        (Reply(200, BLOB, trickle_s=0.2), TimedOut, "sent only .* bytes in 2 s"),
        (Reply(403, b'{"errors": [{"code": "DENIED"}]}'), AccessDenied, r"pull \(DENIED\)"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_blob_that_cannot_be_had_is_one_clear_line(
    registry: Registry,
    server: FakeRegistry,
    fault: Reply,
    expected: type[GearError],
    words: str,
) -> None:
    """
    Wrong bytes, missing, failing, slow, hanging, forbidden; and never without an end.
    """
    server.fault("GET", "blobs", fault, times=20)
    with pytest.raises(expected, match=words) as raised:
        read(registry, server)
    assert "\n" not in str(raised.value)
    assert server.address in str(raised.value)


@pytest.mark.parametrize(
    ("name", "fault", "expected", "words"),
    [
        ("team/app:2", None, ImageNotFound, "has no .*/team/app:2"),
        ("team/app:1", Reply(500), SourceUnavailable, "failed with status 500 to give"),
        ("team/app:1", Reply(418), SourceUnavailable, "status 418"),
        ("team/app:1", Reply(200, b"{"), ArchiveMalformed, "not understood as JSON"),
        ("team/app:1", Reply(200, b"[]"), ArchiveMalformed, "no object"),
        ("team/app:1", Reply(200, b"{}"), Unsupported, "no container image"),
        ("team/app:1", Reply(200, b'{"schemaVersion": 1}'), Unsupported, "schema 1"),
        ("team/app:1", Reply(200, b"{" * 10**6, hang=True, cut=9), SourceUnavailable, "nothing"),
        ("team/app:1", Reply(200, b" " * 999, trickle_s=0.1), TimedOut, "too slow"),
    ],
)
def test_an_image_that_cannot_be_had_is_one_clear_line(
    registry: Registry,
    server: FakeRegistry,
    name: str,
    fault: Reply | None,
    expected: type[GearError],
    words: str,
) -> None:
    """
    Unknown, failing, nonsense, slow.
    """
    if fault is not None:
        server.fault("GET", "manifests", fault, times=20)
    with pytest.raises(expected, match=words) as raised:
        registry.manifest(at(server, name))
    assert "\n" not in str(raised.value)


def test_a_manifest_with_another_digest_is_refused(
    registry: Registry, server: FakeRegistry
) -> None:
    """
    An image that is named by its digest is that image or none.
    """
    server.fault("GET", "manifests", Reply(200, IMAGE.manifest + b" "))
    with pytest.raises(ContentCorrupt, match="another manifest than sha256"):
        registry.manifest(at(server, f"team/app@{layouts.digest(IMAGE.manifest)}"))


def test_what_fails_for_a_moment_is_tried_again(registry: Registry, server: FakeRegistry) -> None:
    """
    Restarts of registries, and their limits, are not the user's business.
    """
    server.fault("GET", "manifests", Reply(503))
    server.fault("GET", "manifests", Reply(429, headers={"Retry-After": "0"}))
    assert registry.manifest(at(server)).config.digest == Digest.of(IMAGE.raw_config)


def test_a_registry_that_is_down_says_so(registry: Registry) -> None:
    """
    After a few attempts, with its address and the system's words.
    """
    with pytest.raises(SourceUnavailable) as raised:
        registry.manifest(Reference.parse("127.0.0.1:9/app:1"))
    assert str(raised.value) == "no registry answers at 127.0.0.1:9: Connection refused"


def test_a_host_without_address_says_so(registry: Registry) -> None:
    """
    A typing error in the name's first part.
    """
    with pytest.raises(SourceUnavailable, match=r"no registry answers at nowhere\.invalid: "):
        registry.manifest(Reference.parse("nowhere.invalid/app:1"))


def test_stopping_ends_what_hangs(registry: Registry, server: FakeRegistry) -> None:
    """
    An interrupt does not wait for a time limit, nor for another attempt.
    """
    server.fault("GET", "blobs", Reply(200, BLOB, cut=100, hang=True))
    slow = client(Path("/nowhere"), limits=registry_limits(stall_s=60))
    begun = time.monotonic()
    timer = threading.Timer(0.3, slow.stop)
    timer.start()
    with pytest.raises(SourceUnavailable, match="stopped talking"):
        read(slow, server)
    assert time.monotonic() - begun < 20
    timer.join()
    slow.close()


def registry_limits(**more: Any) -> Any:
    from dataclasses import replace

    from tests.unit.jobs.registries import QUICK

    return replace(QUICK, **more)


def test_a_push_is_what_a_pull_gets(registry: Registry, server: FakeRegistry) -> None:
    """
    Blobs that are there already are not sent again.
    """
    image, data = at(server, "new/app:1"), b"a new blob" * 1000
    assert registry.push_blob(image, Digest.of(data), BytesIO(data), len(data))
    assert not registry.push_blob(image, Digest.of(data), BytesIO(data), len(data))
    assert read(registry, server, data) == data
    registry.push_manifest(image, IMAGE.manifest, IMAGE.manifest_type)
    assert registry.manifest(image).digest == Digest.of(IMAGE.manifest)


def test_a_broken_upload_begins_anew(registry: Registry, server: FakeRegistry) -> None:
    """
    From the blob's first byte, in an upload of its own.
    """
    data = b"a new blob" * 1000
    server.fault("PUT", "uploads", Reply(500))
    server.fault("POST", "uploads", Reply(503))
    assert registry.push_blob(at(server), Digest.of(data), BytesIO(data), len(data))
    assert server.blobs[layouts.digest(data)] == data
    assert len(server.asked("POST", "uploads")) == 3


@pytest.mark.parametrize(
    ("method", "path", "fault", "expected", "words"),
    [
        (
            "POST",
            "uploads",
            Reply(403),
            AccessDenied,
            "does not allow repository:team/app:pull,push",
        ),
        ("POST", "uploads", Reply(202), SourceUnavailable, "to take a blob of"),
        ("PUT", "uploads", Reply(507), SourceUnavailable, "status 507 to take a blob"),
        ("PUT", "manifests", Reply(400), SourceUnavailable, "status 400 to take"),
    ],
)
def test_a_push_that_is_refused_is_one_clear_line(
    registry: Registry,
    server: FakeRegistry,
    method: str,
    path: str,
    fault: Reply,
    expected: type[GearError],
    words: str,
) -> None:
    """
    Not allowed, no room, not understood.
    """
    server.fault(method, path, fault, times=20)
    data = b"new"
    with pytest.raises(expected, match=words):
        registry.push_blob(at(server), Digest.of(data), BytesIO(data), len(data))
        registry.push_manifest(at(server), IMAGE.manifest, IMAGE.manifest_type)


def test_the_index_layer_is_fetched_plain(
    registry: Registry, server: FakeRegistry, tmp_path: Path
) -> None:
    """
    Whatever it is packed with, checked against the configuration's digest.
    """
    for number, compression in enumerate(("plain", "gzip", "zstd")):
        server.add("app-gear", layouts.Image(str(number), [LAYER], CONFIG, compression))
        target = tmp_path / str(number)
        name = ImageId.parse(f"{server.address}/app-gear:{number}")
        registry.fetch_index_layer(name, target)
        assert target.read_bytes() == LAYER


def _other_diff_id(server: FakeRegistry) -> None:
    other = layouts.Image("1", [b"other"], CONFIG)
    raw = json.loads(IMAGE.manifest)
    raw["config"] = layouts.descriptor(other.raw_config, layouts.CONFIG_TYPE)
    server.blobs[layouts.digest(other.raw_config)] = other.raw_config
    server.add_manifest("team/app:1", json.dumps(raw).encode(), layouts.MANIFEST)


def _two_layers(server: FakeRegistry) -> None:
    server.add("team/app", layouts.Image("1", [LAYER, LAYER], CONFIG))


def _broken(server: FakeRegistry) -> None:
    server.fault("GET", f"blobs/{NAMED}", Reply(200, BLOB, cut=99), times=20)


@pytest.mark.parametrize(
    ("spoil", "expected", "words"),
    [
        (_other_diff_id, ContentCorrupt, "it is not sha256:"),
        (_two_layers, Unsupported, "no Gear image: it has 2 layers"),
        (_broken, SourceUnavailable, "registry"),
    ],
)
def test_an_index_layer_that_cannot_be_had_leaves_nothing(
    registry: Registry,
    server: FakeRegistry,
    tmp_path: Path,
    spoil: Any,
    expected: type[GearError],
    words: str,
) -> None:
    """
    No half of a file under its name.
    """
    spoil(server)
    with pytest.raises(expected, match=words):
        registry.fetch_index_layer(ImageId.parse(f"{server.address}/team/app:1"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


USER = base64.b64encode(b"me:secret").decode()


def log_in(folder: Path, server: FakeRegistry, **entry: str) -> None:
    auths = {server.address: entry or {"auth": USER}}
    (folder / "config.json").write_text(json.dumps({"auths": auths}))


def bearer(server: FakeRegistry, realm: str = "") -> Any:
    """Lets nobody in without a token of its own."""
    realm = realm or f"http://{server.address}/token"
    header = f'Bearer realm="{realm}",service="reg",scope="repository:team/app:pull"'

    def guard(request: Request) -> Reply | None:
        if (
            request.path.startswith("/token")
            or request.headers.get("Authorization") == "Bearer abc"
        ):
            return None
        return Reply(401, headers={"WWW-Authenticate": header})

    return guard


def test_a_token_is_fetched_once_for_a_scope(
    registry: Registry, server: FakeRegistry, tmp_path: Path
) -> None:
    """
    With the login that docker has; the registry itself never sees the password.
    """
    log_in(tmp_path, server)
    server.guard = bearer(server)
    server.fault("GET", "/token", token_reply())
    assert read(registry, server) == BLOB
    assert registry.manifest(at(server)).digest == Digest.of(IMAGE.manifest)
    (asked,) = server.asked("GET", "/token")
    assert asked.headers["Authorization"] == f"Basic {USER}"
    assert "service=reg" in asked.path
    assert "scope=repository%3Ateam%2Fapp%3Apull&account=me" in asked.path
    others = [r.headers.get("Authorization") for r in server.requests if r is not asked]
    assert set(others) == {None, "Bearer abc"}


def test_an_expired_token_is_renewed(
    registry: Registry, server: FakeRegistry, tmp_path: Path
) -> None:
    """
    In the middle of a pull.
    """
    server.guard = bearer(server)
    server.fault("GET", "/token", token_reply("old"))
    server.fault(
        "GET", "manifests", Reply(401, headers={"WWW-Authenticate": 'Bearer realm="x"'}), times=0
    )
    seen: list[str] = []

    def guard(request: Request) -> Reply | None:
        if request.path.startswith("/token"):
            return token_reply("new" if seen else "old")
        given = request.headers.get("Authorization", "")
        wanted = "Bearer new" if seen else "Bearer old"
        if given == wanted:
            return None
        header = f'Bearer realm="http://{server.address}/token",service="reg"'
        return Reply(401, headers={"WWW-Authenticate": header})

    server._faults.clear()
    server.guard = guard
    registry.manifest(at(server))
    seen.append("expired")
    registry.manifest(at(server))
    assert len(server.asked("GET", "/token")) == 2


def test_an_identity_token_is_exchanged(
    registry: Registry, server: FakeRegistry, tmp_path: Path
) -> None:
    """
    As `docker login` with an OAuth server leaves it.
    """
    log_in(tmp_path, server, identitytoken="refresh-me")
    server.guard = bearer(server)
    server.fault("POST", "/token", Reply(200, b'{"access_token": "abc"}'))
    assert read(registry, server) == BLOB
    (asked,) = server.asked("POST", "/token")
    assert b"refresh_token=refresh-me" in asked.body
    assert b"grant_type=refresh_token" in asked.body


def test_basic_logins(registry: Registry, server: FakeRegistry, tmp_path: Path) -> None:
    """
    The login is sent when the registry asks for it, not before.
    """

    def guard(request: Request) -> Reply | None:
        if request.headers.get("Authorization") == f"Basic {USER}":
            return None
        return Reply(401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    server.guard = guard
    with pytest.raises(AccessDenied, match="wants a login; run `docker login 127"):
        registry.manifest(at(server))
    log_in(tmp_path, server)
    assert registry.manifest(at(server)).digest == Digest.of(IMAGE.manifest)
    log_in(tmp_path, server, auth=base64.b64encode(b"me:wrong").decode())
    with pytest.raises(AccessDenied, match="does not allow repository:other:pull"):
        registry.manifest(at(server, "other:1"))


@pytest.mark.parametrize(
    ("reply", "expected", "words"),
    [
        (Reply(401), AccessDenied, "refuses this login"),
        (Reply(200, b"{}"), SourceUnavailable, "gave no token"),
        (Reply(200, b"[]"), SourceUnavailable, "gave no token"),
        (Reply(200, b"<html>"), SourceUnavailable, "gave no token"),
        (Reply(500), SourceUnavailable, r"gave no token \(status 500\)"),
    ],
)
def test_a_token_server_that_gives_none(
    registry: Registry,
    server: FakeRegistry,
    tmp_path: Path,
    reply: Reply,
    expected: type[GearError],
    words: str,
) -> None:
    """
    A wrong password is told from a server that fails.
    """
    log_in(tmp_path, server)
    server.guard = bearer(server)
    server.fault("GET", "/token", reply, times=9)
    with pytest.raises(expected, match=words):
        registry.manifest(at(server))


def test_a_login_is_not_sent_in_the_clear(
    registry: Registry, server: FakeRegistry, tmp_path: Path
) -> None:
    """
    A registry that names a token server without TLS, elsewhere, gets nothing.
    """
    log_in(tmp_path, server)
    server.guard = bearer(server, "http://tokens.example/token")
    with pytest.raises(AccessDenied, match=r"in the clear, to 'http://tokens\.example"):
        registry.manifest(at(server))


def test_a_login_stays_with_its_registry(
    registry: Registry, server: FakeRegistry, tmp_path: Path
) -> None:
    """
    Blobs and uploads that live on another server are reached without it.
    """
    log_in(tmp_path, server)
    server.guard = bearer(server)
    with serving(FakeRegistry()) as other:
        other.add("team/app", IMAGE)
        elsewhere = {"Location": f"http://{other.address}/v2/team/app/blobs/{NAMED}"}
        server.fault("GET", "/token", token_reply(), times=2)
        registry.manifest(at(server))
        server.fault("GET", "blobs", Reply(307, headers=elsewhere))
        assert read(registry, server) == BLOB
        uploads = {"Location": f"http://{other.address}/v2/team/app/blobs/uploads/7"}
        server.fault("POST", "uploads", Reply(202, headers=uploads))
        registry.push_blob(at(server), Digest.of(b"new"), BytesIO(b"new"), 3)
        assert len(other.requests) == 2
        assert not any("Authorization" in request.headers for request in other.requests)

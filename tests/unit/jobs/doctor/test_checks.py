"""Each check against the real thing it looks at, whole and broken."""

from __future__ import annotations

import errno
import http.server
import importlib
import json
import os
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gear_plugin import wire
from gear_plugin.catalog import MemoryCatalog, SqliteCatalog, open_catalog
from gear_plugin.cluster import Member, Members, Settings
from gear_plugin.content import DirectoryStore
from gear_plugin.errors import (
    AccessDenied,
    BadConfig,
    GearError,
    MountFailed,
    SourceUnavailable,
    TimedOut,
)
from gear_plugin.jobs.apart import run_apart
from gear_plugin.jobs.doctor import Finding, Status, kernel
from gear_plugin.jobs.doctor.engine import check_engine
from gear_plugin.jobs.doctor.kernel import check_features, check_fuse, check_way
from gear_plugin.jobs.doctor.places import check_root, check_store
from gear_plugin.jobs.doctor.services import (
    check_catalog,
    check_client,
    check_cluster,
    check_registry,
)
from gear_plugin.jobs.engine_facts import EngineFacts, PluginFacts
from gear_plugin.jobs.nodes import NodePlace
from gear_plugin.rootfs import Feature, Plan, Way

OK, WARN, FIX, SKIP = Status.OK, Status.WARN, Status.FIX, Status.SKIP
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ON_GEAR = {"Gear Version": "1", "Mount Way": "nested (of nested, fuse-tree)", "Gear Images": "3"}
ENABLED = PluginFacts("id", "gear:latest", True, {})
DISABLED = PluginFacts("id", "gear:latest", False, {})


def statuses(findings: Iterable[Finding]) -> dict[str, Status]:
    return {finding.check: finding.status for finding in findings}


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def engine(version: str, **changes: Any) -> EngineFacts:
    fields: dict[str, Any] = {
        "host": "unix:///d.sock",
        "api_version": "1.41",
        "is_experimental": False,
        "driver": "overlay2",
        "driver_status": {},
        "data_root": Path("/var/lib/docker"),
        "plugin": None,
    }
    return EngineFacts(version=version, **(fields | changes))


@pytest.mark.parametrize(
    ("facts", "expected", "remedy"),
    [
        (engine("19.03.1"), (WARN, WARN, WARN, WARN), "--experimental"),
        (engine("20.10.24+dfsg1"), (OK, WARN, WARN, WARN), "--experimental"),
        (engine("20.10.24", is_experimental=True), (OK, OK, WARN, WARN), "docker plugin install"),
        (engine("26.1.5", is_experimental=True), (OK, OK, WARN, WARN), "docker plugin install"),
        (engine("27.5.1", is_experimental=True), (OK, WARN, WARN, WARN), "GRAPHDRIVER_PLUGINS=1"),
        (engine("28.2.2"), (OK, WARN, WARN, WARN), "gear fs"),
        (engine("dev"), (OK, WARN, WARN, WARN), "--experimental"),
        (
            engine("20.10.24", is_experimental=True, plugin=DISABLED),
            (OK, OK, WARN, WARN),
            "docker plugin enable gear:latest",
        ),
        (
            engine("26.1.5", is_experimental=True, plugin=ENABLED),
            (OK, OK, OK, WARN),
            "--storage-driver gear",
        ),
        (
            engine("27.5.1", plugin=ENABLED, driver="gear", driver_status=ON_GEAR),
            (OK, OK, OK, OK),
            "",
        ),
        (engine("20.10.24", driver="mine", driver_status=ON_GEAR), (OK, OK, OK, OK), ""),
    ],
)
def test_an_engine(facts: EngineFacts, expected: tuple[Status, ...], remedy: str) -> None:
    """
    Every version tells what it needs to load a driver; nothing of it is broken.
    """
    found = list(check_engine(facts))
    assert tuple(finding.status for finding in found) == expected
    assert [finding.check for finding in found] == [
        "Docker engine",
        "driver plugins",
        "Gear plugin",
        "storage driver",
    ]
    remedies = [finding.remedy for finding in found if finding.remedy]
    assert bool(remedies) is bool(remedy)
    assert not remedy or any(remedy in text for text in remedies)


@needs_root
@pytest.mark.root
def test_this_kernel(tmp_path: Path) -> None:
    """
    Every feature has a line, the way in use its reasons, and nothing is left.
    """
    root = tmp_path / "not" / "yet"
    checks = [lambda: check_features(root), lambda: check_way(root, "auto")]
    features, way = (outcome.values for outcome in run_apart(checks, timeout_s=60))
    assert len(features) == 7
    assert features[0].detail.split()[:2] == ["Linux", os.uname().release]
    assert all(finding.remedy for finding in features if finding.status is not OK)
    assert only(way).status is OK
    assert any(only(way).detail.startswith(str(known)) for known in Way)
    assert list(tmp_path.iterdir()) == []


@needs_root
@pytest.mark.root
def test_without_root_the_kernel_is_not_tried(tmp_path: Path) -> None:
    """
    It is said, and nothing fails.
    """

    def as_nobody() -> Iterator[Finding]:
        os.setresuid(65534, 65534, 65534)
        yield from check_features(tmp_path)
        yield from check_way(tmp_path, "auto")

    (outcome,) = run_apart([as_nobody], timeout_s=60)
    assert [finding.status for finding in outcome.values] == [OK, SKIP, SKIP]
    assert all("root" in finding.remedy for finding in outcome.values[1:])


class FakeKernel:
    """Stands in for what this kernel cannot be: another one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(kernel, "hide_mounts", lambda: None)
        monkeypatch.setattr(os, "geteuid", lambda: 0)

    def refuses(self, *names: str) -> None:
        features = [
            Feature(name, "Linux 6.12", "cannot" if name in names else "")
            for name in ("overlayfs", "EROFS from a file", "EROFS from a loop device")
        ]
        self._monkeypatch.setattr(kernel, "kernel_features", lambda _scratch: features)

    def probes(self, plan: Plan | MountFailed) -> None:
        def probe(_scratch: Path, _forced: str) -> Plan:
            if isinstance(plan, MountFailed):
                raise plan
            return plan

        self._monkeypatch.setattr(kernel, "probe", probe)


@pytest.fixture
def fake_kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    return FakeKernel(monkeypatch)


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ([], [OK, OK, OK]),
        (["EROFS from a file"], [OK, OK, OK]),
        (["EROFS from a file", "EROFS from a loop device"], [OK, WARN, WARN]),
        (["overlayfs"], [FIX, OK, OK]),
    ],
)
def test_what_a_kernel_lacks(
    fake_kernel: FakeKernel, tmp_path: Path, refused: list[str], expected: list[Status]
) -> None:
    """
    One way of mounting EROFS is enough; without overlayfs nothing goes.
    """
    fake_kernel.refuses(*refused)
    found = list(check_features(tmp_path))[1:]
    assert [finding.status for finding in found] == expected
    assert all(finding.remedy for finding in found if finding.status in (WARN, FIX))


REFUSALS = ("direct: too old", "direct over a loop device: too old", "nested: no file")


@pytest.mark.parametrize(
    ("plan", "wanted", "status", "words"),
    [
        (Plan(Way.DIRECT, False, (Way.DIRECT, Way.NESTED)), "auto", OK, "the best there is; nest"),
        (
            Plan(Way.NESTED, True, (Way.NESTED, Way.FUSE_TREE), REFUSALS),
            "auto",
            OK,
            "nested (index through a loop device): the best that works here (direct: too old | "
            "direct over a loop device: too old); fuse-tree would work too",
        ),
        (Plan(Way.NESTED, False, (Way.NESTED,)), "nested", OK, "mount_way says so"),
        (MountFailed("nothing works"), "auto", FIX, "nothing works"),
        (MountFailed("direct does not"), "direct", FIX, "direct does not"),
    ],
)
def test_the_way_and_why(
    fake_kernel: FakeKernel,
    tmp_path: Path,
    plan: Plan | MountFailed,
    wanted: str,
    status: Status,
    words: str,
) -> None:
    """
    Each refusal of a better way is told, but not that of a way that works after all.
    """
    fake_kernel.probes(plan)
    found = only(check_way(tmp_path, wanted))
    assert (found.status, words in found.detail) == (status, True), found
    assert bool(found.remedy) is (status is FIX)


def test_fuse_that_is_there() -> None:
    """
    The library is the one that the daemon would load.
    """
    assert next(finding for finding in check_fuse() if finding.check == "FUSE library").status is OK


def test_fuse_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    No device, something else in its place, no library.
    """
    assert "modprobe fuse" in next(check_fuse(tmp_path / "fuse")).remedy
    (tmp_path / "fuse").touch()
    found = next(check_fuse(tmp_path / "fuse"))
    assert (found.status, found.detail) == (FIX, f"{tmp_path}/fuse is no device")

    def refuse(name: str) -> None:
        raise ImportError("libfuse.so.2: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", refuse)
    *_, library = check_fuse()
    assert (library.status, "libfuse2" in library.remedy) == (FIX, True)


def test_a_store_that_works(tmp_path: Path) -> None:
    """
    Where it is mounted from, its room and its speed; the sample is gone again.
    """
    DirectoryStore.create(tmp_path)
    found = list(check_store(tmp_path))
    assert [finding.check for finding in found] == ["store", "store: room", "store: speed"]
    assert found[0].status is found[2].status is OK
    assert "mounted at" in found[0].detail
    assert found[2].detail.startswith("4 MiB written in ")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("make", "status", "remedy"),
    [
        (lambda path: None, WARN, "gear push"),
        (Path.touch, FIX, "--store"),
        (Path.mkdir, FIX, "mount it"),
        (lambda path: path.symlink_to("nowhere"), FIX, "--store"),
    ],
)
def test_a_store_that_is_none(
    tmp_path: Path, make: Callable[[Path], None], status: Status, remedy: str
) -> None:
    """
    Told apart, because the remedies differ.
    """
    make(tmp_path / "store")
    found = only(check_store(tmp_path / "store"))
    assert (found.status, remedy in found.remedy) == (status, True)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "gear-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@needs_root
@pytest.mark.root
def test_a_read_only_store_is_enough_for_a_node(tmp_path: Path) -> None:
    """
    A warning: only who pushes writes.
    """
    with mounted(tmp_path / "store", "size=8m") as store:
        DirectoryStore.create(store)
        subprocess.run(["mount", "-o", "remount,ro", store], check=True)
        found = list(check_store(store))
        subprocess.run(["mount", "-o", "remount,rw", store], check=True)
    assert f"tmpfs, mounted at {tmp_path}/store from gear-test" in found[0].detail
    assert (found[-1].status, "Read-only" in found[-1].detail) == (WARN, True)


@needs_root
@pytest.mark.root
def test_a_full_store_is_broken(tmp_path: Path) -> None:
    """
    And what could be written of the sample is removed.
    """
    with mounted(tmp_path / "store", "size=1m") as store:
        DirectoryStore.create(store)
        found = statuses(check_store(store))
        assert [path for path in store.rglob("*") if path.is_file()] == []
    assert found == {"store": OK, "store: room": FIX, "store: speed": WARN}


@needs_root
@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "status"),
    [("size=1m", FIX), ("nr_inodes=500", FIX), ("nr_inodes=9000", WARN), ("size=2g", OK)],
)
def test_a_full_disk_is_seen_before_it_hurts(tmp_path: Path, options: str, status: Status) -> None:
    """
    Bytes and inodes, of the filesystem on which the folder will be.
    """
    with mounted(tmp_path / "disk", options) as disk:
        found = list(check_root(disk / "gear"))
    assert "not there yet" in found[0].detail
    assert (found[1].check, found[1].status) == ("main folder: room", status)


def test_a_catalog(tmp_path: Path) -> None:
    """
    One that answers, one that is made later, one that is damaged, one that hangs on a lock.
    """
    url = f"sqlite://{tmp_path}/catalog.sqlite"
    found = only(check_catalog(url, lambda: open_catalog(url)))
    assert (found.status, "first `gear push`" in found.detail) == (OK, True)
    assert not (tmp_path / "catalog.sqlite").exists()
    SqliteCatalog(tmp_path / "catalog.sqlite").close()
    found = only(check_catalog(url, lambda: open_catalog(url)))
    assert (found.status, found.detail) == (OK, f"{url} answers; images: 0")
    (tmp_path / "catalog.sqlite").write_bytes(b"no catalog" * 1000)
    assert only(check_catalog(url, lambda: open_catalog(url))).status is FIX

    class Locked(MemoryCatalog):
        def list_images(self) -> list[Any]:
            raise TimedOut("locked by others")

    found = only(check_catalog("etcd://h:2379", Locked))
    assert (found.status, found.detail) == (FIX, "locked by others")


@contextmanager
def registry(status: int, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A registry on loopback that answers everything with *status*; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v2/" else 599)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [(200, OK, "answers"), (401, OK, "docker login"), (404, FIX, "status 404")],
)
def test_a_registry(code: int, status: Status, words: str) -> None:
    """
    A local one may do without TLS, as for docker.
    """
    with registry(code) as host:
        found = only(check_registry(host))
    assert (found.check, found.status) == (f"registry {host}", status)
    assert words in found.detail


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        (Settings("nfs://s/e", "etcd://e"), OK, "1 of 2 nodes are live; store: nfs://s/e; catalog"),
        (Settings("", ""), OK, "each node's own; catalog: own"),
        (Settings("/mnt/store", ""), WARN, "a file on the manager's machine"),
    ],
)
def test_a_cluster(settings: Settings, status: Status, words: str) -> None:
    """
    What it has for its nodes, and who is there.
    """
    nodes = (Member("1" * 32, "a:1"), Member("2" * 32, "b:1", is_live=False))
    found = only(check_cluster(lambda: (settings, Members(1, nodes))))
    assert (found.check, found.status) == ("cluster", status)
    assert words in found.detail


def test_a_store_on_nfs_that_nobody_needed_yet(tmp_path: Path) -> None:
    """
    An empty folder is no damaged store.
    """
    (tmp_path / "nfs").mkdir()
    found = only(check_store(tmp_path / "nfs", nfs="nfs://s/e"))
    assert (found.status, "nfs://s/e is not mounted" in found.detail) == (WARN, True)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (AccessDenied("the cluster's token is missing"), "gear token"),
        (SourceUnavailable("m:2019 cannot be asked"), "gear manager"),
        (BadConfig("setting 'manager' wants 'token' too"), "docs/settings.md"),
    ],
)
def test_a_cluster_that_is_not_to_be_had(error: GearError, remedy: str) -> None:
    def ask() -> tuple[Settings, Members]:
        raise error

    found = only(check_cluster(ask))
    assert (found.status, found.detail) == (FIX, str(error))
    assert remedy in found.remedy


def test_a_registry_that_is_not_there() -> None:
    """
    Refused here; not found elsewhere.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = only(check_registry(f"127.0.0.1:{taken.getsockname()[1]}"))
    assert (found.status, "refused" in found.detail) == (FIX, True)
    assert only(check_registry("registry.invalid:5000")).status is FIX


def test_a_registry_with_a_strange_certificate(tmp_path: Path) -> None:
    """
    Not tried without TLS then: docker would not either.
    """
    subject = ["-subj", "/CN=127.0.0.1", "-keyout", "key", "-out", "cert", "-days", "2"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command = ["openssl", "req", "-x509", "-nodes", *kind, *subject]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with registry(200, context) as host:
        found = only(check_registry(host))
    assert (found.status, "ca.crt" in found.remedy) == (FIX, True)


@contextmanager
def client(
    run: Path, answer: dict[str, Any], cluster: dict[str, Any] | None = None
) -> Iterator[None]:
    """A client that gives one answer to everything, but for what it says of its cluster."""
    alone = {"ok": False, "error": "NotFound", "message": "this node is in no cluster"}
    run.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run / "client.sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while asked := connection.recv(1000):
                    said = answer if b"cluster" not in asked else cluster or alone
                    connection.sendall(wire.encode(said))

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()
    (run / "client.sock").unlink()


def test_a_client_that_only_root_may_look_at_is_not_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The folder of its socket is root's alone, where `gear fs` has made it.
    """

    def refused(_path: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "exists", refused)
    found = only(check_client(NodePlace("this machine", tmp_path, tmp_path / "run"), False))
    assert (found.status, found.remedy) == (SKIP, "run it as root")


STATUS = {"ok": True, "cached": {"objects": 3, "size_bytes": 2_500_000}}


def test_a_node_whose_daemons_answer(tmp_path: Path) -> None:
    """
    What is cached, and where the FUSE daemon is mounted.
    """
    node = NodePlace("this machine", tmp_path, tmp_path / "run")
    point = tmp_path / "run" / "fuse" / "1"
    (point / "error").mkdir(parents=True)
    (tmp_path / "run" / "fuse.json").write_text(json.dumps({"mountpoint": str(point)}))
    with client(tmp_path / "run", STATUS):
        answers, fuse = check_client(node, True)
    assert (answers.status, answers.detail) == (OK, "answers; 3 objects cached, 2.5 MB")
    assert (fuse.status, fuse.detail) == (OK, f"answers at {point}")


@pytest.mark.parametrize(("trouble", "status"), [("", OK), ("m:2019 cannot be asked", WARN)])
def test_a_node_in_a_cluster(tmp_path: Path, trouble: str, status: Status) -> None:
    """
    Whose, and whether its manager answers.
    """
    members = Members(7, (Member("1" * 32, "a:1"), Member("2" * 32, "b:1", is_live=False)))
    place = {"cluster": "c", "manager": "m:2019", "trouble": trouble}
    told = {"ok": True, **place, "members": members.as_json()}
    with client(tmp_path / "run", STATUS, told):
        _, found, _ = check_client(NodePlace("n", tmp_path, tmp_path / "run"), True)
    assert (found.check, found.status) == ("cluster of n", status)
    assert found.detail.startswith("c, manager m:2019; 1 of 2 nodes are live")
    assert trouble in found.detail


def no_state(run: Path) -> None:
    pass


def no_json(run: Path) -> None:
    (run / "fuse.json").write_text("{")


def no_mount(run: Path) -> None:
    (run / "fuse" / "1").mkdir(parents=True)
    (run / "fuse.json").write_text(json.dumps({"mountpoint": str(run / "fuse" / "1")}))


@pytest.mark.parametrize(("state", "status"), [(no_state, FIX), (no_json, FIX), (no_mount, WARN)])
def test_a_fuse_daemon_that_does_not(
    tmp_path: Path, state: Callable[[Path], None], status: Status
) -> None:
    """
    None, a damaged record, a mount that is gone.
    """
    (tmp_path / "run").mkdir()
    state(tmp_path / "run")
    with client(tmp_path / "run", STATUS):
        _, fuse = check_client(NodePlace("n", tmp_path, tmp_path / "run"), True)
    assert fuse.status is status and fuse.remedy


def test_a_client_that_is_not_there(tmp_path: Path) -> None:
    """
    Broken only where the engine needs one.
    """
    for run in (None, tmp_path):
        node = NodePlace("this machine", tmp_path, run)
        assert only(check_client(node, False)).status is SKIP
        assert only(check_client(node, True)).status is FIX
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "client.sock"))
    assert stat.S_ISSOCK((tmp_path / "client.sock").stat().st_mode)
    dead, fuse = check_client(NodePlace("n", tmp_path, tmp_path), True)
    assert (dead.status, "refused" in dead.detail, fuse.status) == (FIX, True, FIX)

"""A store on a real NFS server: mounting it, pushing to it, reading it, and its failures."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.cluster import Settings
from gear_plugin.content import DirectoryStore
from gear_plugin.content.chosen import ChosenStore
from gear_plugin.content.nfs_address import NfsAddress
from gear_plugin.digest import Digest
from gear_plugin.errors import Conflict, GearError, MountFailed, SourceUnavailable, TimedOut
from gear_plugin.jobs.mount_table import Mounted, mounts_at
from gear_plugin.jobs.nfs_mount import ensure_mounted, unmount
from gear_plugin.jobs.store_setting import StoreSetting
from gear_plugin.names import ImageId
from gear_plugin.rootfs import mounts
from gear_plugin.rootfs import unmount as unmount_any
from tests.engine.compare import differences, scan
from tests.engine.registry import Registry
from tests.faults.node import Node
from tests.vm.guest.images import archive, gear, odd_tree
from tests.vm.guest.nfs_server import ADDRESS, NfsServer
from tests.waiting import eventually

EXPORT, OTHER = Path("/srv/gear"), Path("/srv/other")
STORE = NfsAddress.parse(f"nfs://{ADDRESS}{EXPORT}")
LIMIT_S = 20.0
STALL_S, FETCH_S = 4, 12
SLACK_S = 4.0
"""An emulated processor is slow."""
SOFT_S = 30.0
"""What the mount's options come to."""
RECOVERY_S = 90.0

Failure = tuple[Callable[[NfsServer], None], Callable[[NfsServer], None]]
FAILURES: dict[str, Failure] = {
    "stopped": (NfsServer.stop, NfsServer.start),
    "cut off": (NfsServer.cut_off, NfsServer.connect),
}


class Timer:
    """How long a block took; said on the console."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.s = 0.0

    def __enter__(self) -> Timer:
        self._began_s = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.s = time.monotonic() - self._began_s
        print(f"\n  {self._what}: {self.s:.1f} s", end="", flush=True)


@pytest.fixture(scope="module")
def server() -> Iterator[NfsServer]:
    for folder in (EXPORT, OTHER):
        folder.mkdir(parents=True, exist_ok=True)
    server = NfsServer(EXPORT, OTHER)
    server.start()
    yield server


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A mount point that is not there yet."""
    target = tmp_path / "root/nfs"
    yield target
    for point, _ in list(mounts())[::-1]:
        if tmp_path in point.parents:
            unmount_any(point, lazy=True)


def mounted_at(target: Path) -> Mounted | None:
    found = mounts_at(target)
    assert len(found) < 2
    return found[0] if found else None


def put(folder: Path, content: bytes) -> Digest:
    """Put an object into the store that is at *folder*."""
    digest = Digest.of(content)
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        DirectoryStore(folder).put(digest, Path(file.name))
    return digest


def is_put(folder: Path, content: bytes) -> bool:
    """Whether putting it works now."""
    try:
        put(folder, content)
    except GearError:
        return False
    return True


def noise(name: str, size_bytes: int = 60_000) -> bytes:
    return random.Random(name).randbytes(size_bytes)


def test_a_mount_is_made_once_and_with_our_options(server: NfsServer, target: Path) -> None:
    """
    Read-only for who reads; the kernel shows the options that keep it from hanging for ever.
    """
    with Timer("mounting"):
        ensure_mounted(STORE, target, LIMIT_S)
    ensure_mounted(STORE, target, LIMIT_S)
    assert [point for point, _ in mounts()].count(target) == 1
    found = mounted_at(target)
    assert found is not None
    print(f"\n  {found}")
    assert (found.kind, found.source, found.is_read_only) == ("nfs4", STORE.source, True)
    wanted = {"vers": "4.2", "timeo": "100", "retrans": "2", "lookupcache": "pos"}
    assert wanted.items() <= found.options.items()
    assert "softerr" in found.options
    with pytest.raises(OSError) as caught:
        (target / "x").write_text("")
    assert caught.value.errno == errno.EROFS
    unmount(target, LIMIT_S)
    unmount(target, LIMIT_S)
    assert mounted_at(target) is None


def test_reading_and_writing_mounts_stand_side_by_side(server: NfsServer, target: Path) -> None:
    """
    What one machine stores, another finds at once, though it asked before it was there.
    """
    writing = target.with_name("writing")
    ensure_mounted(STORE, target, LIMIT_S)
    ensure_mounted(STORE, writing, LIMIT_S, read_only=False)
    DirectoryStore.create(writing)
    content = noise("side by side")
    assert not DirectoryStore(target).has(Digest.of(content))
    digest = put(writing, content)
    with Timer("until a reader finds a new object"):
        eventually(lambda: DirectoryStore(target).has(digest), "it is found", timeout_s=5)
    with DirectoryStore(target).read(digest) as chunks:
        assert b"".join(chunks) == content


def test_another_export_takes_the_place(server: NfsServer, target: Path) -> None:
    """
    The cluster's store moved: the same folder shows the new one. A mount for reading becomes
    one for writing where that is asked for.
    """
    (EXPORT / "here").touch()
    (OTHER / "there").touch()
    ensure_mounted(STORE, target, LIMIT_S)
    assert (target / "here").exists()
    ensure_mounted(NfsAddress.parse(f"nfs://{ADDRESS}{OTHER}"), target, LIMIT_S, read_only=False)
    assert (target / "there").exists()
    (target / "written").touch()
    assert [point for point, _ in mounts()].count(target) == 1


def test_what_is_no_nfs_is_left_alone(server: NfsServer, target: Path) -> None:
    """
    Conflict, with the name of what is there.
    """
    target.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "mine", target], check=True)
    with pytest.raises(Conflict, match="tmpfs from mine"):
        ensure_mounted(STORE, target, LIMIT_S)


def test_an_export_that_is_not_there_is_said(server: NfsServer, target: Path) -> None:
    """
    At once, with what to look at.
    """
    with Timer("no such export"), pytest.raises(MountFailed, match="does it export"):
        ensure_mounted(NfsAddress.parse(f"nfs://{ADDRESS}/srv/none"), target, LIMIT_S)


def test_a_host_without_a_server_is_said(server: NfsServer, target: Path) -> None:
    """
    Another port of the same machine: nobody listens there.
    """
    with Timer("nobody listens"), pytest.raises((SourceUnavailable, TimedOut)) as caught:
        ensure_mounted(NfsAddress.parse(f"nfs://{ADDRESS}:2050{EXPORT}"), target, LIMIT_S)
    print(f"\n  {caught.value}")


def mount_briefly(address: str, target: Path, _timeout_s: float) -> None:
    """As a node does, with less patience."""
    ensure_mounted(NfsAddress.parse(address), target, 6.0)


@pytest.mark.parametrize("failure", FAILURES)
def test_mounting_never_waits_longer_than_it_may(
    server: NfsServer, target: Path, failure: str
) -> None:
    """
    An error in time; and who keeps it mounted has it when the server answers.
    """
    fail, mend = FAILURES[failure]
    fail(server)
    try:
        with (
            Timer(f"mounting, server {failure}") as timer,
            pytest.raises((TimedOut, SourceUnavailable)) as caught,
        ):
            ensure_mounted(STORE, target, 6.0)
        print(f"\n  {caught.value}")
        assert timer.s < 6.0 + SLACK_S
        keeper = StoreSetting(ChosenStore(), target, target, mount_briefly)
        keeper.apply(Settings(str(STORE)))
        time.sleep(8.0)
        assert mounted_at(target) is None
    finally:
        mend(server)
    with Timer("it is mounted by itself"):
        eventually(lambda: mounted_at(target), "it is mounted", timeout_s=RECOVERY_S)
    keeper.stop()


@pytest.mark.parametrize("failure", FAILURES)
def test_a_dead_mount_is_taken_away_at_once(server: NfsServer, target: Path, failure: str) -> None:
    """
    Though its server does not answer.
    """
    fail, mend = FAILURES[failure]
    ensure_mounted(STORE, target, LIMIT_S)
    fail(server)
    try:
        with Timer(f"unmounting, server {failure}") as timer:
            unmount(target, LIMIT_S)
        assert timer.s < SLACK_S
        assert mounted_at(target) is None
    finally:
        mend(server)


def test_push_and_read_through_the_store(server: NfsServer, target: Path, tmp_path: Path) -> None:
    """
    `gear build` and `gear push` on one machine, `gear fs` on another: the same tree.
    Both mount the store themselves.
    """
    image = ImageId.parse("127.0.0.1:5000/app:1")
    tree = odd_tree(tmp_path, large=False)
    saved = archive(tmp_path, image)
    registry = Registry(tmp_path / "registry", port=5000)
    registry.start()
    shown = tmp_path / "shown"
    shown.mkdir()
    catalog = f"sqlite://{tmp_path}/catalog.sqlite"
    try:
        pusher = ("--root", tmp_path / "pusher", "--store", STORE, "--catalog", catalog)
        gear(*pusher, "build", "--from", saved, image)
        with Timer("gear push to NFS"):
            print(f"\n  {gear(*pusher, 'push', '--create-store', image.gear).stdout}", end="")
        os.environ["GEAR_RUN"] = str(tmp_path / "run")
        reader = ("--root", target.parent, "--store", STORE, "--catalog", catalog)
        gear(*reader, "fs", image.gear, shown)
        with Timer("reading all of it through NFS"):
            found = scan(shown)
        assert differences(scan(tree), found) == []
    finally:
        os.environ.pop("GEAR_RUN", None)
        registry.stop()


def fails(path: Path) -> int:
    """The errno with which reading fails; 0: it did not."""
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize("failure", FAILURES)
def test_a_container_lives_through_a_store_that_fails(
    server: NfsServer, target: Path, tmp_path: Path, failure: str
) -> None:
    """
    What is cached reads on, what is missing is EIO in time, docker's calls are answered,
    and all by itself it is well again when the server is.
    """
    fail, mend = FAILURES[failure]
    files = {f"f{number}": noise(f"{failure} {number}") for number in range(40)}
    writing = tmp_path / "writing"
    ensure_mounted(STORE, writing, LIMIT_S, read_only=False)
    DirectoryStore.create(writing)
    for content in files.values():
        put(writing, content)
    ensure_mounted(STORE, target, LIMIT_S)
    limits: dict[str, Any] = {"fetch_stall_s": STALL_S, "fetch_timeout_s": FETCH_S}
    node = Node(tmp_path / "node", {}, store=target, **limits)
    other = Node(tmp_path / "image", files)
    try:
        node.start()
        node.erofs, node.manifest = other.erofs, other.manifest
        node.pull()
        tree = node.container()
        assert (tree / "f0").read_bytes() == files["f0"]
        fail(server)
        try:
            with Timer(f"a missing object, server {failure}") as timer:
                assert fails(tree / "f1") == errno.EIO
            assert timer.s < FETCH_S + SLACK_S
            with Timer("a cached object") as timer:
                assert (tree / "f0").read_bytes() == files["f0"]
            assert timer.s < SLACK_S
            with Timer("docker's calls") as timer:
                node.call("Status")
                second = node.container("second")
                assert (second / "f0").read_bytes() == files["f0"]
                assert sorted(path.name for path in second.iterdir()) == sorted(files)
            assert timer.s < SLACK_S + 4
            with Timer("6 missing objects, one after the other") as timer:
                assert {fails(tree / f"f{number}") for number in range(2, 8)} == {errno.EIO}
            assert timer.s < 6 * (FETCH_S + SLACK_S)
        finally:
            mend(server)
        with Timer("until a missing object is read again"):
            eventually(lambda: not fails(tree / "f1"), "f1 is read", timeout_s=RECOVERY_S)
        with Timer("all the others"):
            for name, content in files.items():
                assert (tree / name).read_bytes() == content
        for name in ("second", "container"):
            node.call("Put", ID=name)
    finally:
        node.close()
        other.close()


@pytest.mark.parametrize("failure", FAILURES)
def test_whoever_touches_a_dead_mount_gets_an_error(
    server: NfsServer, target: Path, failure: str
) -> None:
    """
    Within the time that the options come to, not the default's "never".
    """
    fail, mend = FAILURES[failure]
    ensure_mounted(STORE, target, LIMIT_S)
    fail(server)
    try:
        with Timer(f"stat, server {failure}") as timer, pytest.raises(OSError) as caught:
            os.listdir(target / hashlib.sha256(os.urandom(8)).hexdigest())
        print(f" ({caught.value.strerror})", end="")
        assert timer.s < 2 * SOFT_S + SLACK_S
    finally:
        mend(server)


def test_a_push_that_loses_its_server_fails_and_can_be_repeated(
    server: NfsServer, target: Path
) -> None:
    """
    The error is one of ours; the second attempt stores the same object whole.
    """
    ensure_mounted(STORE, target, LIMIT_S, read_only=False)
    DirectoryStore.create(target)
    content = noise("pushed twice", 3_000_000)
    server.cut_off()
    try:
        with Timer("pushing, server cut off"), pytest.raises(GearError) as caught:
            put(target, content)
        print(f"\n  {type(caught.value).__name__}: {caught.value}")
    finally:
        server.connect()
    with Timer("until the same push goes through"):
        eventually(lambda: is_put(target, content), "it is stored", timeout_s=RECOVERY_S)
    digest = put(target, content)
    with DirectoryStore(target).read(digest) as chunks:
        assert hashlib.sha256(b"".join(chunks)).hexdigest() == digest.hex

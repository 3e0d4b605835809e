"""`gear push` where something is wrong: one line, the right code, nothing half-made."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gear_plugin import cli
from gear_plugin import log as logs
from gear_plugin.cli import wiring
from gear_plugin.content import DirectoryStore
from gear_plugin.digest import Digest
from gear_plugin.errors import EngineUnavailable, SourceUnavailable
from gear_plugin.jobs import BuildFolder
from gear_plugin.jobs.progress import Progress
from gear_plugin.names import ImageId
from tests.unit.content.mounts import Mount
from tests.unit.jobs.fakes import FakeEngine
from tests.unit.jobs.pushing import Machine, files

ONE, TWO = ImageId.parse("registry.example/app:1"), ImageId.parse("registry.example/app:2")


class Engine(FakeEngine):
    """As `wiring.engine` gives it, with a registry that may refuse."""

    refusal: str | None = None

    def push(self, image: ImageId, progress: Progress) -> None:
        if self.refusal is not None:
            raise SourceUnavailable(f"the registry did not take {image}: {self.refusal}")
        super().push(image, progress)

    def close(self) -> None:
        pass


class Gear(Machine):
    """`gear push` in this process."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        super().__init__(folder, f"sqlite://{folder}/catalog.sqlite", Engine())
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        monkeypatch.setattr(wiring, "engine", lambda _config: self.fake)
        monkeypatch.setattr(logs, "setup", lambda *_: None)

    def run(self, image: ImageId, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        places = ["--root", str(self.root), "--store", str(self.store), "--catalog", self.catalog]
        argv = ["gear", *places, "push", str(image.gear), *words]
        self._monkeypatch.setattr(sys, "argv", argv)
        self._capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        return (code, *self._capfd.readouterr())

    def pushed(self, image: ImageId, *words: str) -> dict[str, Any]:
        """The result of a push that must succeed."""
        code, stdout, stderr = self.run(image, "--json", *words)
        assert code == 0, stderr
        result: dict[str, Any] = json.loads(stdout)
        return result

    def refused(self, image: ImageId, code: int, *words: str) -> str:
        """The one line of a push that must fail; the steps before it are not in it."""
        ended, stdout, stderr = self.run(image, *words)
        assert (ended, stdout) == (code, ""), stderr
        *steps, line = stderr.splitlines()
        assert line.startswith("gear: ")
        assert all(step.startswith(("storing", "recording", "pushing")) for step in steps)
        return line

    def assert_unnamed(self, image: ImageId) -> None:
        """Neither catalog nor registry has it, and the store nothing half-written."""
        assert not self.is_recorded(image)
        assert str(image.gear) not in self.fake.pushed
        assert list(self.store.glob("incoming/*")) == []


@pytest.fixture
def gear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Gear:
    return Gear(tmp_path, monkeypatch, capfd)


def test_a_second_version_sends_only_what_is_new(gear: Gear) -> None:
    """
    And says how many bytes that saved, as content and as what the store would have taken.
    """
    text = {f"usr/{number}": b"%d " % number * 5000 for number in range(20)}
    twice = {**text, "copy": text["usr/1"]}  # files with one content are one object
    gear.build(ONE, twice)
    first = gear.pushed(ONE)
    assert (first["objects"], first["new_objects"], first["saved_bytes"]) == (20, 20, 0)
    assert first["new_bytes"] == sum(map(len, text.values()))
    on_disk = sum(path.stat().st_size for path in gear.store.glob("objects/*/*"))
    assert first["new_stored_bytes"] == on_disk < first["new_bytes"] / 10

    gear.build(TWO, {**twice, "etc/new": b"new"})
    second = gear.pushed(TWO)
    assert second["new_objects"] == 1
    assert second["new_bytes"] == second["new_stored_bytes"] == 3
    assert second["saved_bytes"] == first["object_bytes"]
    assert second["saved_stored_bytes"] == first["new_stored_bytes"]
    gear.check(ONE, TWO)


def test_a_store_that_is_not_mounted(gear: Gear) -> None:
    """
    Its mount point stays empty.
    """
    gear.build(ONE, files("one", 3))
    gear.store.mkdir()
    assert "mount it" in gear.refused(ONE, 7)
    assert list(gear.store.iterdir()) == []
    gear.pushed(ONE, "--create-store")
    gear.check(ONE)


@pytest.mark.root
def test_a_read_only_store(gear: Gear) -> None:
    """
    Found at once, also if all objects are there: a push that cannot announce itself
    could lose them to a collection from elsewhere.
    """
    with Mount.tmpfs(gear.store, size_bytes=10 << 20) as mount:
        gear.build(ONE, files("one", 30))
        gear.pushed(ONE, "--create-store")
        mount.remount("ro")
        gear.build(TWO, files("two", 30))
        assert "Read-only file system" in gear.refused(TWO, 7)
        gear.assert_unnamed(TWO)
        assert "Read-only file system" in gear.refused(ONE, 7)


@pytest.mark.root
def test_a_full_store(gear: Gear) -> None:
    """
    No record, no index; once there is room the push goes on where it stopped.
    """
    with Mount.tmpfs(gear.store, size_bytes=3 << 20) as mount:
        ballast = mount.path / "ballast"
        ballast.write_bytes(bytes(1 << 20))
        gear.build(ONE, {f"{number}": os.urandom(20_000) for number in range(140)})
        message = gear.refused(ONE, 7, "--create-store")
        assert f"store {gear.store} is full" in message
        assert "free space" in message
        gear.assert_unnamed(ONE)
        before = gear.stored()
        ballast.unlink()
        assert gear.pushed(ONE)["new_objects"] == 140 - before
        gear.check(ONE)


def test_a_store_that_cannot_be_made(gear: Gear) -> None:
    """
    A file stands where the folder should be.
    """
    gear.build(ONE, files("one", 3))
    gear.store.write_bytes(b"")
    assert str(gear.store) in gear.refused(ONE, 7)
    gear.assert_unnamed(ONE)


@pytest.mark.parametrize(
    ("catalog", "code", "message"),
    [
        ("etcd://127.0.0.1:1", 7, "no etcd answers at 127.0.0.1:1 (Connection refused)"),
        ("etcd://user:secret@host", 2, "password_file"),
        ("sqlite:///no/such/folder/catalog", 2, "/no/such/folder/catalog"),
        ("nonsense", 2, "etcd://"),
    ],
)
def test_a_catalog_that_cannot_be_used(gear: Gear, catalog: str, code: int, message: str) -> None:
    """
    Told before objects are sent, and without a password.
    """
    gear.build(ONE, files("one", 3))
    usual, gear.catalog = gear.catalog, catalog
    line = gear.refused(ONE, code)
    assert message in line
    assert "secret" not in line
    assert gear.stored() == 0
    gear.catalog = usual
    gear.assert_unnamed(ONE)


@pytest.mark.parametrize(
    "refusal",
    [
        "unauthorized: authentication required",
        "denied: requested access to the resource is denied",
        'Get "https://registry.example/v2/": dial tcp 127.0.0.1:443: connect: connection refused',
    ],
)
def test_a_registry_that_refuses(gear: Gear, refusal: str) -> None:
    """
    Its reason in one line; objects and record are there, and are not sent again.
    """
    gear.build(ONE, files("one", 3))
    assert isinstance(gear.fake, Engine)
    gear.fake.refusal = refusal
    assert refusal in gear.refused(ONE, 7)
    assert gear.fake.pushed == []
    gear.fake.refusal = None
    assert gear.pushed(ONE)["new_objects"] == 0
    gear.check(ONE)


def test_an_engine_that_is_not_there(gear: Gear, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Nothing is stored.
    """

    def no_engine(_config: object) -> None:
        raise EngineUnavailable("no Docker engine answers at unix:///x (--host, DOCKER_HOST)")

    gear.build(ONE, files("one", 3))
    monkeypatch.setattr(wiring, "engine", no_engine)
    assert "no Docker engine answers" in gear.refused(ONE, 7)
    assert not gear.store.exists()


def change_an_object(folder: BuildFolder) -> None:
    path = folder.files / Digest.of(files("one", 30)["one/7"]).shard_path
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)


def remove_an_object(folder: BuildFolder) -> None:
    (folder.files / Digest.of(files("one", 30)["one/7"]).shard_path).unlink()


def cut_the_index(folder: BuildFolder) -> None:
    folder.index_tar.write_bytes(folder.index_tar.read_bytes()[:-512])


def damage_the_result(folder: BuildFolder) -> None:
    (folder.path / "build" / "build.json").write_text("{}")


@pytest.mark.parametrize(
    ("tamper", "code", "message"),
    [
        (change_an_object, 5, "changed since it was built"),
        (remove_an_object, 3, "run `gear build` again"),
        (cut_the_index, 5, "is not what was built"),
        (damage_the_result, 5, "build again"),
    ],
)
def test_a_build_folder_that_was_tampered_with(
    gear: Gear, tamper: Callable[[BuildFolder], None], code: int, message: str
) -> None:
    """
    Refused before anything names the image; built again, it can be pushed.
    """
    gear.build(ONE, files("one", 30))
    tamper(BuildFolder.of(gear.root, ONE))
    assert message in gear.refused(ONE, code)
    gear.assert_unnamed(ONE)
    gear.build(ONE, files("one", 30))
    gear.pushed(ONE)
    gear.check(ONE)


def test_what_killed_pushes_left_goes_with_the_next(gear: Gear) -> None:
    """
    After a day, or when its time lies in a future that never was.
    """
    incoming = gear.store / "incoming"
    DirectoryStore.create(gear.store)
    for name, time_s in (("old", 0), ("future", 2**32)):
        path = incoming / f".tmp-{name}"
        path.touch()
        os.utime(path, (time_s, time_s))
    gear.build(ONE, files("one", 3))
    gear.pushed(ONE)
    gear.check(ONE)

"""The store that the cluster names: a directory, NFS that is mounted first, or the node's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.cluster import Settings
from gear_plugin.content import DirectoryStore
from gear_plugin.content.chosen import ChosenStore
from gear_plugin.digest import Digest
from gear_plugin.errors import GearError, MountFailed, SourceUnavailable
from gear_plugin.jobs.store_setting import StoreSetting
from tests.waiting import eventually

X = Digest.of(b"x")
IMAGE = Digest.of(b"index")


class Mounts:
    """Mounting that fails until the test says otherwise; then the store is there."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Path, float]] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, address: str, target: Path, timeout_s: float) -> None:
        self.calls.append((address, target, timeout_s))
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error


def stocked(root: Path, content: bytes) -> Path:
    """A store with one object."""
    store = DirectoryStore.create(root)
    file = root.with_name("file")
    file.write_bytes(content)
    store.put(Digest.of(content), file)
    return root


def read(store: ChosenStore, digest: Digest = X) -> bytes:
    with store.read(digest) as chunks:
        return b"".join(chunks)


def is_readable(store: ChosenStore, digest: Digest = X) -> bool:
    try:
        read(store, digest)
    except GearError:
        return False
    return True


@pytest.fixture
def store() -> ChosenStore:
    return ChosenStore()


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    found = Mounts()
    yield found
    found.gate.set()


@pytest.fixture
def setting(store: ChosenStore, tmp_path: Path, mounts: Mounts) -> Iterator[StoreSetting]:
    setting = StoreSetting(store, tmp_path / "own", tmp_path / "nfs", mounts, first_pause_s=0.01)
    yield setting
    setting.stop()


def test_unknown_store_is_unavailable(store: ChosenStore) -> None:
    """Not empty: what it holds nobody can say."""
    with pytest.raises(SourceUnavailable, match="not known"):
        read(store)
    assert store.load(IMAGE) == []
    assert not store.save(IMAGE, [X])


def test_directory_is_used(store: ChosenStore, setting: StoreSetting, tmp_path: Path) -> None:
    """For objects and for start profiles."""
    setting.apply(Settings(store=str(stocked(tmp_path / "shared", b"x"))))
    assert read(store) == b"x"
    assert store.save(IMAGE, [X])
    assert store.load(IMAGE) == [X]
    assert (tmp_path / "shared" / "profiles" / IMAGE.hex).exists()


def test_cluster_without_a_store_leaves_the_nodes_own(
    store: ChosenStore, setting: StoreSetting, tmp_path: Path
) -> None:
    """As without a cluster."""
    stocked(tmp_path / "own", b"x")
    setting.apply(Settings())
    assert read(store) == b"x"


def test_nfs_is_mounted_first(
    store: ChosenStore, setting: StoreSetting, tmp_path: Path, mounts: Mounts
) -> None:
    """Nobody waits for that; until then the store is unavailable."""
    stocked(tmp_path / "nfs", b"x")
    mounts.gate.clear()
    setting.apply(Settings(store="nfs://server/export"))
    eventually(lambda: mounts.calls)
    assert not is_readable(store)
    mounts.gate.set()
    eventually(lambda: is_readable(store))
    address, target, timeout_s = mounts.calls[0]
    assert (address, target) == ("nfs://server/export", tmp_path / "nfs")
    assert 0 < timeout_s <= 60


@pytest.mark.parametrize("error", [MountFailed("the server is down"), OSError("a bug")])
def test_failed_mount_is_tried_again(
    store: ChosenStore,
    setting: StoreSetting,
    tmp_path: Path,
    mounts: Mounts,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until it works."""
    stocked(tmp_path / "nfs", b"x")
    mounts.error = error
    setting.apply(Settings(store="nfs://server/export"))
    eventually(lambda: len(mounts.calls) >= 3)
    assert not is_readable(store)
    assert caplog.text.count("cannot be mounted") == 1
    mounts.error = None
    eventually(lambda: is_readable(store))
    caplog.clear()


def test_other_settings_replace_the_store(
    store: ChosenStore, setting: StoreSetting, tmp_path: Path, mounts: Mounts
) -> None:
    """Also while the old one is still being mounted; the same ones change nothing."""
    mounts.gate.clear()
    for _ in range(3):
        setting.apply(Settings(store="nfs://server/export"))
    eventually(lambda: mounts.calls)
    setting.apply(Settings(store=str(stocked(tmp_path / "shared", b"x"))))
    mounts.gate.set()
    assert read(store) == b"x"
    assert len(mounts.calls) == 1
    names = [thread for thread in threading.enumerate() if thread.name == "mount"]
    for thread in names:
        thread.join(5)
    assert read(store) == b"x"


def test_nonsense_is_no_store(
    store: ChosenStore, setting: StoreSetting, caplog: pytest.LogCaptureFixture
) -> None:
    """What was in use stays in use."""
    setting.apply(Settings(store="some/where"))
    assert not is_readable(store)
    assert "neither nfs://HOST/EXPORT nor a directory" in caplog.text
    caplog.clear()

"""The node's cache: names are promises, links are pins, room is made, boots are survived."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.content import Cache
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentCorrupt, ImageNotFound, StorageFull, StorageUnavailable

NGINX, PYTHON = Digest.of(b"nginx index"), Digest.of(b"python index")
KIB = 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "gear"


@pytest.fixture
def cache(root: Path) -> Cache:
    cache = Cache(root, 0)
    cache.admit(NGINX)
    return cache


def publish(cache: Cache, content: bytes, image: Digest = NGINX) -> Digest:
    cache.publish(image, Digest.of(content), [content] if content else [])
    return Digest.of(content)


def private(root: Path, image: Digest, digest: Digest) -> Path:
    return root / "private" / image.hex / digest.shard_path


def files(root: Path) -> list[Path]:
    """Every file in the cache's three folders."""
    folders = (root / name for name in ("public", "private", "cache-incoming"))
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def test_room_is_what_disk_and_limit_leave(root: Path) -> None:
    """In bytes; never less than nothing."""
    free = Cache(root, 0).room_bytes()
    assert 0 < free <= shutil.disk_usage(root).total
    limited = Cache(root, 50_000)
    limited.admit(NGINX)
    assert limited.room_bytes() == 50_000
    for number in range(3):
        content = b"%d" % number * 10_000
        limited.publish(NGINX, Digest.of(content), iter([content]))
    assert limited.room_bytes() == 50_000 - limited.usage().size_bytes < 50_000
    for number in range(4):
        content = b"%d" % number * 20_000
        limited.publish(NGINX, Digest.of(content), iter([content]))
    assert limited.room_bytes() == 0


def test_published_object_is_one_inode_under_two_names(cache: Cache, root: Path) -> None:
    """Public and private name, whole content, readable by root alone."""
    content = b"abc"
    digest = Digest.of(content)
    assert cache.publish(NGINX, digest, iter([b"a", b"bc"])) == 3
    public = root / "public" / digest.shard_path
    assert cache.path(digest) == public
    assert public.read_bytes() == content
    assert public.samefile(private(root, NGINX, digest))
    assert stat.S_IMODE(public.stat().st_mode) == 0o400
    assert cache.has(digest)
    assert len(files(root)) == 2


def test_empty_object(cache: Cache) -> None:
    """No chunk at all is an object too."""
    assert cache.path(publish(cache, b"")).read_bytes() == b""


def test_wrong_bytes_get_no_name(cache: Cache, root: Path) -> None:
    """Neither a public nor a private one, and nothing is left behind."""
    digest = Digest.of(b"right")
    with pytest.raises(ContentCorrupt, match=digest.hex):
        cache.publish(NGINX, digest, [b"wrong"])
    assert files(root) == []
    assert not cache.link(NGINX, digest)


def test_source_failing_midway_leaves_nothing(cache: Cache, root: Path) -> None:
    """The source's own error comes through."""

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        cache.publish(NGINX, Digest.of(b"whole"), chunks())
    assert files(root) == []


def test_link_pins_for_another_image(cache: Cache, root: Path) -> None:
    """A second image takes up what is there; asking twice is fine."""
    cache.admit(PYTHON)
    digest = publish(cache, b"shared")
    assert [cache.link(PYTHON, digest), cache.link(PYTHON, digest)] == [True, True]
    assert private(root, PYTHON, digest).samefile(cache.path(digest))
    assert cache.path(digest).stat().st_nlink == 3


def test_link_of_an_absent_object(cache: Cache) -> None:
    """False: it has to be fetched."""
    assert cache.link(NGINX, Digest.of(b"absent")) is False


def test_images_are_those_admitted_and_not_forgotten(cache: Cache) -> None:
    """What a client compares with the images of its node when it starts."""
    before = set(cache.images())
    cache.admit(Digest.of(b"new"))
    assert set(cache.images()) == before | {Digest.of(b"new")}
    cache.forget(Digest.of(b"new"))
    assert set(cache.images()) == before


def test_image_must_be_admitted(cache: Cache, root: Path) -> None:
    """No folder springs up for an image that is not here (or has left)."""
    digest = publish(cache, b"x")
    with pytest.raises(ImageNotFound, match=PYTHON.hex):
        cache.link(PYTHON, digest)
    with pytest.raises(ImageNotFound, match=PYTHON.hex):
        cache.publish(PYTHON, Digest.of(b"y"), [b"y"])
    assert not (root / "private" / PYTHON.hex).exists()
    assert len(files(root)) == 2


def test_admit_is_idempotent(cache: Cache, root: Path) -> None:
    """The folder is there before the first mount, and keeps what it has."""
    digest = publish(cache, b"x")
    cache.admit(NGINX)
    assert private(root, NGINX, digest).exists()


def test_forget_drops_the_pins_only(cache: Cache, root: Path) -> None:
    """The private folder goes, the public object stays for others; twice is fine."""
    digest = publish(cache, b"x")
    cache.forget(NGINX)
    cache.forget(NGINX)
    assert not (root / "private" / NGINX.hex).exists()
    assert cache.path(digest).stat().st_nlink == 1
    assert len(files(root)) == 1


def test_publishing_twice_keeps_one_inode(cache: Cache, root: Path) -> None:
    """A read that was given up for slow may come back second; both names stay one inode."""
    digest = publish(cache, b"x")
    inode = cache.path(digest).stat().st_ino
    publish(cache, b"x")
    assert cache.path(digest).stat().st_ino == inode
    assert private(root, NGINX, digest).stat().st_ino == inode
    assert len(files(root)) == 2
    assert cache.usage().objects == 1


def test_lone_private_link_is_linked_back(cache: Cache) -> None:
    """After a crash between the two names nothing is fetched again."""
    digest = publish(cache, b"x")
    cache.path(digest).unlink()
    assert cache.link(NGINX, digest) is True
    assert cache.path(digest).read_bytes() == b"x"


def test_start_removes_what_a_crash_left(cache: Cache, root: Path) -> None:
    """Objects on their way and folders on their way out."""
    digest = publish(cache, b"x")
    (root / "cache-incoming" / "17").write_bytes(b"half")
    (root / "cache-incoming" / "18" / "abc").mkdir(parents=True)
    again = Cache(root, 0)
    assert os.listdir(root / "cache-incoming") == []
    assert again.has(digest)


def test_usage_counts_disk_blocks(cache: Cache, root: Path) -> None:
    """Objects in whole 4 KiB blocks, shared ones once; the same after a restart."""
    cache.admit(PYTHON)
    publish(cache, b"x")
    cache.link(PYTHON, Digest.of(b"x"))
    publish(cache, b"y" * 4097)
    assert (cache.usage().objects, cache.usage().size_bytes) == (2, 3 * 4096)
    assert Cache(root, 0).usage() == cache.usage()


def test_foreign_files_are_left_alone(
    cache: Cache, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What people or mkfs put into the folders is neither counted nor removed, nor in the way."""
    foreign = [root / "public" / "note", root / "private" / "note"]
    for path in foreign:
        path.touch()
    (root / "public" / "lost+found" / "x").mkdir(parents=True)
    again = Cache(root, 8192, is_mounted=lambda _image: False, boot_id="another")
    again.admit(NGINX)
    for content in (b"1", b"2", b"3"):
        publish(again, content)
    assert again.usage().size_bytes <= 8192
    assert all(path.exists() for path in [*foreign, root / "public" / "lost+found" / "x"])
    caplog.clear()


class TestLimit:
    """A cache of 100 KiB; every object takes 20 KiB."""

    @pytest.fixture
    def cache(self, root: Path) -> Cache:
        self.mounted = {NGINX, PYTHON}
        cache = Cache(root, 100 * KIB, is_mounted=lambda image: image in self.mounted)
        cache.admit(NGINX)
        cache.admit(PYTHON)
        return cache

    def put(self, cache: Cache, number: int, image: Digest) -> Digest:
        # ctime has the resolution of the kernel's tick.
        time.sleep(0.011)
        return publish(cache, bytes([number]) * 20 * KIB, image)

    def test_unused_objects_go_first_released_first(self, cache: Cache) -> None:
        """Order of release counts, not of arrival; what an image uses stays."""
        ours = [self.put(cache, number, NGINX) for number in range(2)]
        early = self.put(cache, 3, PYTHON)
        kept = self.put(cache, 4, PYTHON)
        cache.link(NGINX, early)
        cache.forget(PYTHON)  # releases `kept`
        cache.admit(PYTHON)
        time.sleep(0.011)
        cache.forget(NGINX)  # releases the others, later
        cache.admit(NGINX)
        newer = [self.put(cache, number, NGINX) for number in (5, 6)]
        assert [cache.has(digest) for digest in [kept, *newer]] == [False, True, True]
        assert sum(cache.has(digest) for digest in [*ours, early]) >= 2
        assert cache.usage().size_bytes <= 100 * KIB

    def test_mounted_images_keep_all(self, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
        """What running containers opened is never evicted; the limit gives way, loudly."""
        digests = [self.put(cache, number, NGINX) for number in range(8)]
        assert all(cache.has(digest) for digest in digests)
        assert "more than the cache limit" in caplog.text
        caplog.clear()

    def test_unmounted_image_goes_as_a_whole(self, cache: Cache, root: Path) -> None:
        """Its pins go, its folder stays for the next mount."""
        theirs = [self.put(cache, number, PYTHON) for number in range(4)]
        self.mounted = {NGINX}
        ours = [self.put(cache, number, NGINX) for number in range(10, 13)]
        assert all(cache.has(digest) for digest in ours)
        assert not all(cache.has(digest) for digest in theirs)
        assert os.listdir(root / "private" / PYTHON.hex) == []
        assert cache.usage().size_bytes <= 100 * KIB

    def test_object_larger_than_the_limit(self, cache: Cache, root: Path) -> None:
        """It is refused before it fills the disk, however long the source goes on."""

        def endless() -> Iterator[bytes]:
            while True:
                yield bytes(64 * KIB)

        with pytest.raises(StorageFull, match="cache_limit"):
            cache.publish(NGINX, Digest.of(b""), endless())
        assert files(root) == []

    def test_restart_counts_what_is_there(self, cache: Cache, root: Path) -> None:
        """A lower limit takes effect with the next object."""
        old = [self.put(cache, number, NGINX) for number in range(4)]
        cache.forget(NGINX)
        again = Cache(root, 60 * KIB)
        again.admit(NGINX)
        publish(again, b"new")
        assert again.usage().size_bytes <= 60 * KIB
        assert sum(again.has(digest) for digest in old) == 2


def test_full_disk_evicts_and_goes_on(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ENOSPC in the middle of a write costs unused objects, not the fetch."""
    cache.admit(PYTHON)
    unused = publish(cache, b"unused", PYTHON)
    cache.forget(PYTHON)
    real_write = os.write

    def write(handle: int, data: bytes) -> int:
        if cache.has(unused):
            raise OSError(errno.ENOSPC, "No space left on device")
        # A short write, too, as a disk that fills up gives one.
        return real_write(handle, data[:7])

    monkeypatch.setattr("gear_plugin.content.cache.os.write", write)
    content = bytes(range(100))
    digest = publish(cache, content)
    monkeypatch.undo()
    assert cache.path(digest).read_bytes() == content
    assert not cache.has(unused)
    caplog.clear()


@pytest.mark.root
def test_really_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a filesystem of 1 MiB: evicts what is unused, then says StorageFull."""
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "gear-test", root], check=True)
    try:
        cache = Cache(root, 0)
        cache.admit(NGINX)
        cache.admit(PYTHON)
        unused = publish(cache, os.urandom(600 * KIB), PYTHON)
        cache.forget(PYTHON)
        used = publish(cache, os.urandom(600 * KIB))
        assert [cache.has(unused), cache.has(used)] == [False, True]
        with pytest.raises(StorageFull, match="cache_limit"):
            publish(cache, os.urandom(600 * KIB))
        assert cache.has(used)
        assert os.listdir(root / "cache-incoming") == []
    finally:
        subprocess.run(["umount", root], check=True)
        caplog.clear()


class TestBoots:
    """`boot_id` stands in for the machine's."""

    @pytest.fixture
    def cache(self, root: Path) -> Cache:
        cache = Cache(root, 0, boot_id="first")
        cache.admit(NGINX)
        return cache

    @staticmethod
    def age(path: Path, seconds: float) -> None:
        when = time.time() - seconds
        os.utime(path, (when, when))

    def test_restart_in_the_same_boot_keeps_all(self, cache: Cache, root: Path) -> None:
        """A killed client loses nothing: the kernel still has it."""
        digest = publish(cache, b"x")
        assert Cache(root, 0, boot_id="first").link(NGINX, digest)

    def test_unclean_boot_drops_what_was_not_on_disk(
        self, cache: Cache, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Both names of what came after the checkpoint; what came before stays."""
        old = publish(cache, b"old")
        self.age(cache.path(old), 60)
        cache.checkpoint()
        new = publish(cache, b"new")
        again = Cache(root, 0, boot_id="second")
        assert [again.has(old), again.has(new)] == [True, False]
        assert not private(root, NGINX, new).exists()
        assert again.usage().objects == 1
        assert "dropped 2" in caplog.text
        caplog.clear()

    def test_boot_after_a_checkpoint_at_the_end_keeps_all(self, cache: Cache, root: Path) -> None:
        """An orderly stop costs nothing."""
        digest = publish(cache, b"x")
        self.age(cache.path(digest), 5)
        cache.checkpoint()
        assert Cache(root, 0, boot_id="second").has(digest)

    def test_lost_checkpoint_trusts_nothing(
        self, cache: Cache, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Damaged or gone: everything is fetched again."""
        digest = publish(cache, b"x")
        self.age(cache.path(digest), 3600)
        cache.checkpoint()
        (root / "cache-checkpoint").chmod(0o600)
        (root / "cache-checkpoint").write_bytes(b"\0\0\0\0")
        assert not Cache(root, 0, boot_id="first").has(digest)
        caplog.clear()

    def test_clock_set_back(
        self,
        cache: Cache,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Files that look older than the checkpoint, but are not, are not trusted."""
        cache.checkpoint()
        hour_ago = time.time_ns() - 3600 * 10**9
        monkeypatch.setattr(time, "time_ns", lambda: hour_ago)
        digest = publish(cache, b"x")
        monkeypatch.undo()
        os.utime(cache.path(digest), ns=(hour_ago, hour_ago))
        assert not Cache(root, 0, boot_id="second").has(digest)
        caplog.clear()

    def test_clock_set_back_while_bytes_come(
        self,
        cache: Cache,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The time of a file is that of its last byte, not of its first."""
        cache.checkpoint()
        hour_ago = time.time_ns() - 3600 * 10**9

        def chunks() -> Iterator[bytes]:
            yield b"be"
            monkeypatch.setattr(time, "time_ns", lambda: hour_ago)
            yield b"fore"

        digest = Digest.of(b"before")
        cache.publish(NGINX, digest, chunks())
        monkeypatch.undo()
        os.utime(cache.path(digest), ns=(hour_ago, hour_ago))
        assert not Cache(root, 0, boot_id="second").has(digest)
        caplog.clear()

    @pytest.mark.parametrize("jump_s", [10**9, -(10**9)])
    def test_clock_that_was_wrong_for_a_while(
        self,
        cache: Cache,
        root: Path,
        jump_s: int,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """
        30 years off, a checkpoint taken, and set right: what was on disk by
        then may stay, what came later must not be trusted.
        """
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + jump_s * 10**9)
        early = publish(cache, b"early")
        when = real() + jump_s * 10**9 - 3 * 10**9
        os.utime(cache.path(early), ns=(when, when))
        cache.checkpoint()
        monkeypatch.undo()
        late = publish(cache, b"late")
        assert not Cache(root, 0, boot_id="second").has(late)
        caplog.clear()


def test_start_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    After a boot, with no room for a checkpoint: unused objects make it, and
    without any the cache opens all the same, trusting no more than before.
    """
    root = tmp_path / "gear"
    cache = Cache(root, 0, boot_id="first")
    cache.admit(NGINX)
    digest = publish(cache, b"old")
    hour_ago = time.time() - 3600
    os.utime(cache.path(digest), (hour_ago, hour_ago))
    cache.checkpoint()
    with pytest.MonkeyPatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise StorageFull("no room left")

        patch.setattr("gear_plugin.content.checkpoint.write_once", full)
        again = Cache(root, 0, boot_id="second")
    assert again.has(digest)
    assert "no checkpoint of this boot yet" in caplog.text
    new = publish(again, b"new")
    assert not Cache(root, 0, boot_id="second").has(new)
    caplog.clear()


def test_foreign_folders_are_no_images(cache: Cache, root: Path) -> None:
    """What people put beside the images is theirs."""
    (root / "private/notes").mkdir()
    assert cache.images() == [NGINX]


def test_broken_disk_is_not_a_bug(tmp_path: Path) -> None:
    """A file where a folder should be, or a disk that refuses, is one line."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match="cannot be used: Not a directory"):
        Cache(tmp_path / "file" / "gear", 0)


@pytest.mark.root
def test_overlay_serves_the_cache_to_anyone(cache: Cache, root: Path, tmp_path: Path) -> None:
    """
    Files of mode 0400 in 0700 folders are enough: an unprivileged user reads
    and executes them through a data-only layer with the index's metadata.
    """
    script = b"#!/bin/sh\necho it runs\n"
    digest = publish(cache, script)
    (public_index := tmp_path / "index").mkdir()
    (merged := tmp_path / "merged").mkdir()
    entry = public_index / "script"
    entry.touch()
    os.truncate(entry, len(script))
    entry.chmod(0o755)
    os.setxattr(entry, "trusted.overlay.metacopy", b"")
    os.setxattr(entry, "trusted.overlay.redirect", b"/" + digest.shard_path.encode())
    # Users reach the mount; pytest's own folders are closed to them.
    for folder in (public_index, merged):
        folder.chmod(0o755)
    layers = f"{public_index}::{root / 'public'}::{root / 'private' / NGINX.hex}"
    subprocess.run(
        ["mount", "-t", "overlay", "gear-test", str(merged), "-o"]
        + [f"ro,metacopy=on,redirect_dir=follow,lowerdir={layers}"],
        check=True,
    )
    try:
        for step in ("all layers", "private only"):
            handle = os.open(merged, os.O_PATH | os.O_DIRECTORY)
            try:
                done = subprocess.run(
                    [f"/proc/self/fd/{handle}/script"],
                    user=65534,
                    group=65534,
                    extra_groups=[],
                    pass_fds=[handle],
                    capture_output=True,
                )
            finally:
                os.close(handle)
            assert done.stdout == b"it runs\n", (step, done.stderr)
            shutil.rmtree(root / "public" / digest.hex[:3], ignore_errors=True)
    finally:
        subprocess.run(["umount", merged], check=True)


def test_object_for_no_image_has_one_name(cache: Cache, root: Path) -> None:
    """It is here for other nodes; an image that wants it pins it as it is."""
    digest = Digest.of(b"x")
    assert not cache.link(None, digest)
    assert cache.publish(None, digest, [b"x"]) == 1
    assert cache.link(None, digest)
    assert [path.stat().st_nlink for path in files(root)] == [1]
    assert cache.usage().objects == 1
    assert cache.link(NGINX, digest)
    assert {path.stat().st_nlink for path in files(root)} == {2}


def test_object_for_no_image_leaves_a_pinned_one_alone(cache: Cache, root: Path) -> None:
    """And the other way round: one inode, counted once."""
    digest = publish(cache, b"x")
    inode = cache.path(digest).stat().st_ino
    cache.publish(None, digest, [b"x"])
    assert {path.stat().st_ino for path in files(root)} == {inode}
    other = Digest.of(b"y")
    cache.publish(None, other, [b"y"])
    publish(cache, b"y")
    assert cache.path(other).stat().st_ino == private(root, NGINX, other).stat().st_ino
    assert cache.usage().objects == 2
    assert len(files(root)) == 4


def test_objects_for_no_image_are_evicted_first(root: Path) -> None:
    """However new they are."""
    cache = Cache(root, 10 * 4 * KIB)
    cache.admit(NGINX)
    pinned = [publish(cache, b"%d" % number) for number in range(5)]
    others = [Digest.of(b"other %d" % number) for number in range(9)]
    for number, digest in enumerate(others):
        cache.publish(None, digest, [b"other %d" % number])
    assert all(cache.has(digest) for digest in pinned)
    assert not all(cache.has(digest) for digest in others)


def test_link_in_the_instant_of_naming_leaves_no_third_name(
    cache: Cache, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the private link and names it; the publisher's own name must still go."""
    rename = os.rename

    def link_first(source: str, target: str) -> None:
        assert cache.link(NGINX, Digest.of(b"x"))
        rename(source, target)

    monkeypatch.setattr(os, "rename", link_first)
    publish(cache, b"x")
    assert [path.stat().st_nlink for path in files(root)] == [2, 2]
    assert cache.usage().objects == 1

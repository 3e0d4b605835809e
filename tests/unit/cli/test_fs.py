"""`gear fs` for real: a mount, a client of its own, a store in a directory; no Docker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.catalog import MemoryCatalog
from gear_plugin.content import DirectoryStore
from gear_plugin.digest import Digest
from gear_plugin.jobs import build, push
from gear_plugin.names import ImageId
from gear_plugin.rootfs import is_mount, mounts, unmount
from tests.unit.image.tars import info, tar
from tests.unit.jobs.fakes import FakeEngine, Recorder
from tests.unit.jobs.saves import file, saved_by_20

pytestmark = pytest.mark.root

PROGRAM = b"#!/bin/sh\necho it runs\n"
LARGE = os.urandom(2 << 20)
LAYER = tar(
    info("bin/", type=b"5", mode=0o755),
    file("bin/program", PROGRAM, mode=0o755),
    file("large", LARGE),
    file("secret", b"secret", mode=0o600),
)


class Machine:
    """A folder with a build, a store and the settings of `gear`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.point = base / "mnt"
        self.point.mkdir()
        engine = FakeEngine({"app:1": saved_by_20("app:1", [LAYER])})
        image = ImageId.parse("app:1")
        build(image, engine, base / "root", Recorder())
        store = DirectoryStore.create(base / "store")
        push(image.gear, engine, store, MemoryCatalog(), base / "root", Recorder())

    def command(self, *words: str) -> list[str]:
        places = ["--root", f"{self.base}/root", "--store", f"{self.base}/store"]
        return [sys.executable, "-m", "gear_plugin", *places, *words]

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "GEAR_RUN": f"{self.base}/run", "GEAR_FETCH_STALL_S": "2"}

    def gear(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, env=self.environ, timeout=60
        )
        assert done.returncode == code, done.stderr + self.log()
        return done

    def log(self) -> str:
        path = self.base / "run/fs.log"
        return path.read_text() if path.exists() else ""

    def servers(self) -> list[int]:
        """The serving processes and clients of this machine."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environ = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if f"GEAR_RUN={self.base}/run\0".encode() in environ:
                    found.append(int(entry.name))
        return found

    def wait_until_ended(self) -> None:
        deadline = time.monotonic() + 30
        while self.servers():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        for point in [point for point, _ in mounts() if tmp_path in point.parents][::-1]:
            unmount(point, lazy=True)
        for process in made.servers():
            os.kill(process, signal.SIGKILL)


def test_files_are_there_and_come_when_they_are_opened(machine: Machine) -> None:
    """
    Listing fetches nothing, reading fetches one; programs run; umount ends everything.
    """
    said = machine.gear("fs", "app-gear:1", str(machine.point)).stdout
    assert f"umount {machine.point}" in said
    public = machine.base / "root/public"
    assert {path.name for path in machine.point.iterdir()} == {"bin", "large", "secret"}
    assert list(public.glob("*/*")) == []
    assert subprocess.check_output([machine.point / "bin/program"]) == b"it runs\n"
    assert [path.read_bytes() for path in public.glob("*/*")] == [PROGRAM]
    assert (machine.point / "large").read_bytes() == LARGE
    subprocess.run(["umount", machine.point], check=True)
    machine.wait_until_ended()


def test_modes_hold_for_other_users(machine: Machine) -> None:
    """
    The mount is for everyone, by the modes in the image.
    """
    machine.base.chmod(0o755)
    for parent in machine.base.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    machine.gear("fs", "app-gear:1", str(machine.point))
    words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "cat"]
    assert subprocess.check_output([*words, machine.point / "large"]) == LARGE
    refused = subprocess.run([*words, machine.point / "secret"], capture_output=True, text=True)
    assert "Permission denied" in refused.stderr


def test_it_can_stay_in_the_foreground(machine: Machine) -> None:
    """
    SIGINT unmounts and ends with 0.
    """
    process = subprocess.Popen(
        machine.command("fs", "-f", "app-gear:1", str(machine.point)),
        env=machine.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        line = process.stderr.readline()
        while line and "umount" not in line:
            line = process.stderr.readline()
        assert (machine.point / "large").stat().st_size == len(LARGE)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, process.stderr.read()
    assert not is_mount(machine.point)
    machine.wait_until_ended()


def test_prefetch_brings_everything(machine: Machine) -> None:
    """
    The store may go away afterwards.
    """
    answer = json.loads(
        machine.gear("fs", "--prefetch", "--json", "app-gear:1", str(machine.point)).stdout
    )
    assert answer["gear_image"] == "app-gear:1"
    private = machine.base / "root/private" / answer["index"]
    deadline = time.monotonic() + 30
    while len(list(private.glob("*/*"))) < 3:
        assert time.monotonic() < deadline, machine.log()
        time.sleep(0.05)
    (machine.base / "store").rename(machine.base / "away")
    assert (machine.point / "large").read_bytes() == LARGE


def test_a_second_mount_shares_the_client_and_outlives_it(machine: Machine) -> None:
    """
    The client went with the first mount; the second starts another.
    """
    other = machine.base / "other"
    other.mkdir()
    machine.gear("fs", "app-gear:1", str(machine.point))
    machine.gear("fs", "app-gear:1", str(other))
    assert len(machine.servers()) == 3
    subprocess.run(["umount", machine.point], check=True)
    assert (other / "large").read_bytes() == LARGE
    assert (other / "bin/program").read_bytes() == PROGRAM
    subprocess.run(["umount", other], check=True)
    machine.wait_until_ended()


def test_a_mount_whose_process_was_killed_is_replaced(machine: Machine) -> None:
    """
    The same command again is all that it takes.
    """
    machine.gear("fs", "app-gear:1", str(machine.point))
    for process in machine.servers():
        os.kill(process, signal.SIGKILL)
    machine.wait_until_ended()
    # Which of the two, is up to the moment at which the kernel noticed.
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        (machine.point / "large").read_bytes()
    machine.gear("fs", "app-gear:1", str(machine.point))
    assert (machine.point / "large").read_bytes() == LARGE


def test_a_missing_object_is_an_error_and_reads_once_it_is_back(machine: Machine) -> None:
    """
    EIO, within the time limit.
    """
    machine.gear("fs", "app-gear:1", str(machine.point))
    shutil.rmtree(machine.base / "root/build")
    shard = machine.base / "store/objects" / Digest.of(LARGE).shard_path
    (kept,) = shard.parent.glob(f"{shard.name}*")
    kept.rename(machine.base / "away")
    with pytest.raises(OSError, match="Input/output error"):
        (machine.point / "large").read_bytes()
    (machine.base / "away").rename(kept)
    assert (machine.point / "large").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("app-gear:1", "missing"), 2, "mkdir"),
        (("app-gear:1", "root"), 2, "not empty"),
        (("app-gear:1", "store/objects/../../file"), 2, "not a directory"),
        (("app-gear:1", "n" * 256), 2, "File name too long"),
        (("app:1", "mnt"), 2, "not a Gear image's name"),
        (("other-gear:1", "mnt"), 3, "not built in"),
        (("no/t A:name", "mnt"), 2, "not an image name"),
    ],
)
def test_wrong_words_are_one_line(
    machine: Machine, words: tuple[str, str], code: int, says: str
) -> None:
    """
    What was wrong and what to do; nothing is mounted and nothing runs.
    """
    (machine.base / "file").touch()
    done = machine.gear("fs", words[0], str(machine.base / words[1]), code=code)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not is_mount(machine.point)
    machine.wait_until_ended()


def test_what_was_built_here_needs_no_store(machine: Machine) -> None:
    """
    Before the first push there is none.
    """
    shutil.rmtree(machine.base / "store")
    machine.gear("fs", "app-gear:1", str(machine.point))
    assert (machine.point / "large").read_bytes() == LARGE
    unmount(machine.point)
    machine.wait_until_ended()


def test_two_at_once_on_one_directory(machine: Machine) -> None:
    """
    One has it, and the other one says so in a line.
    """
    command = machine.command("fs", "app-gear:1", str(machine.point))
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=machine.environ)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes[0] == 0
    assert codes[1] in (2, 8)
    (refused,) = [text for text, process in zip(said, both, strict=True) if process.returncode]
    assert "mounted on" in refused or "cannot mount on" in refused
    assert "Error" not in refused
    assert (machine.point / "large").read_bytes() == LARGE
    unmount(machine.point)
    machine.wait_until_ended()


def test_a_mounted_directory_is_not_mounted_twice(machine: Machine) -> None:
    """
    The first one would be hidden.
    """
    machine.gear("fs", "app-gear:1", str(machine.point))
    assert "umount" in machine.gear("fs", "app-gear:1", str(machine.point), code=2).stderr

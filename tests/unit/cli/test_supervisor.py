"""The process tree: what is restarted when, and what is seen as hung."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from gear_plugin.cli.supervisor import Child, Supervisor
from gear_plugin.errors import Conflict
from gear_plugin.rootfs import Generation, LazyLayer
from tests.waiting import eventually

SUPERVISE = """
import sys
from pathlib import Path
from gear_plugin.cli.supervisor import Supervisor
from gear_plugin.errors import TimedOut
from gear_plugin.rootfs import LazyLayer
run = Path(sys.argv[1])
# "fuse" says that it is ready, and shows an ordinary folder instead of a mount.
ready = "import os, sys, time; os.write(int(sys.argv[4]), b'.'); time.sleep(99)"
fuse = [sys.executable, "-c", ready]
def resume():
    with (run / "resumed").open("a") as file:
        file.write("x")
        if file.tell() < 3:
            raise TimedOut("not yet")

sleep = [sys.executable, "-c", "import time; time.sleep(99)"]
Supervisor(run, {"api": sleep, "client": sleep, "fuse": fuse}, lazy=LazyLayer(run),
           heal=lambda: (run / "healed").open("a").write("x"),
           resume=resume, watchdog_s=10).serve()
"""


def test_a_child_is_started_again_after_a_growing_pause() -> None:
    """
    A process that ends at once must not be started in a tight loop.
    """
    started: list[float] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(now)
        return subprocess.Popen(["true"])

    child, now = Child("c", start), 0.0
    for tick in range(100):
        now = tick / 10
        child.tend(now)
        assert child.process is None or child.process.wait() == 0
    pauses = [second - first for first, second in pairwise(started)]
    assert 3 <= len(started) < 10
    assert pauses == sorted(pauses)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    process = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(tmp_path)])
    eventually((tmp_path / "healed").exists)
    yield tmp_path, process
    process.terminate()
    assert process.wait(10) == 0


def test_a_killed_fuse_daemon_comes_back_as_a_new_generation_and_heals(
    supervised: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    """
    Images that were mounted are completed after every start.
    """
    run, _ = supervised
    lazy = LazyLayer(run)
    first = lazy.current(5)
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: (run / "healed").read_text() == "xx")
    second = lazy.current(5)
    assert second.pid != first.pid


def test_a_new_client_is_told_what_to_complete_until_it_listens(
    supervised: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    """
    What it was completing when it died is not forgotten; the first client has nothing to resume.
    """
    run, process = supervised
    assert not (run / "resumed").exists()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    fuse = LazyLayer(run).current(5).pid
    for child in children:
        if int(child) != fuse:
            os.kill(int(child), signal.SIGKILL)
    eventually(lambda: (run / "resumed").exists() and (run / "resumed").read_text() == "xxx")


def test_a_stopped_supervisor_leaves_no_process_and_no_generation(tmp_path: Path) -> None:
    """
    SIGTERM ends all three.
    """
    process = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(tmp_path)])
    eventually((tmp_path / "healed").exists)
    fuse = LazyLayer(tmp_path).current(5).pid
    process.terminate()
    assert process.wait(10) == 0
    assert not Path(f"/proc/{fuse}").exists()
    assert LazyLayer(tmp_path).published() is None


def test_two_supervisors_on_one_folder_exclude_each_other(tmp_path: Path) -> None:
    """
    Two writers of one cache must never come to be.
    """
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = Supervisor(tmp_path, {}, lazy=LazyLayer(tmp_path), heal=lambda: None, watchdog_s=1)
        with pytest.raises(Conflict):
            second.serve()


def test_a_generation_whose_daemon_is_gone_is_not_current(tmp_path: Path) -> None:
    """
    Mounting on a dead FUSE layer would fail, or hang.
    """
    gone = subprocess.Popen(["true"])
    gone.wait()
    lazy = LazyLayer(tmp_path)
    lazy.publish(Generation(1, gone.pid, str(tmp_path)))
    assert lazy.published() is None


def test_a_fuse_daemon_that_dies_at_once_is_never_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Its mount point has gone between its word that it is ready and the look at it.
    """
    lazy = LazyLayer(tmp_path)
    healed: list[str] = []
    supervisor = Supervisor(tmp_path, {}, lazy=lazy, heal=lambda: healed.append("x"), watchdog_s=1)
    ready_r, ready_w = os.pipe()
    os.write(ready_w, b".")
    os.close(ready_w)
    gone = Generation(1, os.getpid(), str(tmp_path / "fuse/1"))
    supervisor._when_ready(gone, ready_r)
    assert lazy.published() is None
    assert healed == []
    assert "ended right after its start" in caplog.text

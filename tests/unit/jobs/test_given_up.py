"""Commands that hang."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.errors import TimedOut
from gear_plugin.jobs import given_up
from gear_plugin.jobs.given_up import Commands
from tests.waiting import eventually

LONG_S = 60.0


def soon(after_s: float = LONG_S) -> float:
    return time.monotonic() + after_s


class Unkillable(subprocess.Popen[bytes]):
    """As a process that waits in the kernel: SIGKILL does nothing until it is let go."""

    made: list[Unkillable] = []  # noqa: RUF012

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self.made.append(self)

    def kill(self) -> None:
        pass


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Unkillable]]:
    """Have commands be so; they end with the test."""
    Unkillable.made.clear()
    monkeypatch.setattr(subprocess, "Popen", Unkillable)
    monkeypatch.setattr(given_up, "_REAP_S", 0.01)
    yield Unkillable.made
    for process in Unkillable.made:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def commands() -> Iterator[Commands]:
    made = Commands()
    yield made
    made.close()


def test_what_a_command_says_is_told(commands: Commands) -> None:
    """
    Its status, its output, and its errors in one line; messages are in English.
    """
    ended = commands.run(
        "x", ["sh", "-c", "echo $LC_ALL; echo a >&2; echo ' b' >&2; exit 3"], soon()
    )
    assert (ended.status, ended.output, ended.said) == (3, "C\n", "a; b")


def test_a_command_that_hangs_is_killed(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The call ends in time, and no process is left.
    """
    monkeypatch.setattr(given_up, "_REAP_S", LONG_S)
    began_s = time.monotonic()
    with pytest.raises(TimedOut, match="no answer in time"):
        commands.run("x", ["sleep", "600"], soon(0.2))
    assert time.monotonic() - began_s < LONG_S / 2
    assert commands.run("x", ["true"], soon()).status == 0


def test_one_that_cannot_be_killed_is_not_started_twice(
    unkillable: list[Unkillable], commands: Commands
) -> None:
    """
    Another attempt fails at once; other things are done meanwhile; when it ends all is well.
    """
    with pytest.raises(TimedOut, match="no answer in time"):
        commands.run("mounting a", ["sleep", "600"], soon(0.1))
    (hanging,) = unkillable
    began_s = time.monotonic()
    with pytest.raises(TimedOut, match=f"process {hanging.pid} still hangs"):
        commands.run("mounting a", ["true"], soon())
    assert time.monotonic() - began_s < LONG_S / 2
    assert commands.run("mounting b", ["true"], soon()).status == 0
    hanging.send_signal(signal.SIGKILL)
    eventually(lambda: hanging.poll() is not None, "it ends")
    assert commands.run("mounting a", ["true"], soon()).status == 0


def test_two_threads_do_not_start_two(tmp_path: Path, commands: Commands) -> None:
    """
    The second is told that the first is at it.
    """
    begun, done = tmp_path / "begun", tmp_path / "done"
    script = f"touch {begun}; until [ -e {done} ]; do sleep 0.02; done"
    first = threading.Thread(target=commands.run, args=("x", ["sh", "-c", script], soon()))
    first.start()
    try:
        eventually(begun.exists, "the first has begun")
        with pytest.raises(TimedOut, match="still hangs"):
            commands.run("x", ["true"], soon())
    finally:
        done.touch()
        first.join()
    assert commands.run("x", ["true"], soon()).status == 0


def test_a_command_may_go_on_when_its_work_is_done(tmp_path: Path, commands: Commands) -> None:
    """
    `umount -l` of a dead server: the name is gone, the process waits.
    """
    done = tmp_path / "done"
    script = f"touch {done}; exec sleep 600"
    began_s = time.monotonic()
    assert commands.run_until(done.exists, "x", ["sh", "-c", script], soon())
    assert commands.run_until(done.exists, "x", ["true"], soon())
    assert time.monotonic() - began_s < LONG_S / 2


def test_one_that_ends_without_its_work_done_is_told(commands: Commands) -> None:
    """
    At once; and one that goes on without it, at the deadline.
    """
    assert not commands.run_until(lambda: False, "x", ["false"], soon())
    assert not commands.run_until(lambda: False, "y", ["sleep", "600"], soon(0.1))


def test_a_command_that_is_not_there(tmp_path: Path, commands: Commands) -> None:
    """
    The caller knows what it is called for people.
    """
    with pytest.raises(FileNotFoundError):
        commands.run("x", [str(tmp_path / "none")], soon())

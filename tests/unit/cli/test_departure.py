"""A command ends with its exit code, whatever its threads hang in."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROLOGUE = """
import os, signal, sys, threading, time
from gear_plugin.cli import departure
def main():
"""


def start(body: str) -> subprocess.Popen[str]:
    """A process whose command does *body*, after it said "ready"."""
    lines = ["print('ready', flush=True)", *body.splitlines()]
    code = PROLOGUE + "".join(f"    {line}\n" for line in lines)
    process = subprocess.Popen(
        [sys.executable, "-c", code + "departure.run(main, interrupted=130)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        # To the end, when nobody holds the pipes: the child is gone as well.
        return process.wait(60), process.stdout.read(), process.stderr.read()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("pass", 0),
        ("sys.exit(7)", 7),
        ("sys.exit()", 0),
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_it_ends_as_the_command_ends(body: str, code: int) -> None:
    """With its code, or by its signal."""
    assert ended(start(body)) == (code, "", "")


def test_output_is_the_commands() -> None:
    """All of it, before the end."""
    done = ended(start("print('out'); print('err', file=sys.stderr); sys.exit(5)"))
    assert done == (5, "out\n", "err\n")


def test_a_thread_that_does_not_end_is_left() -> None:
    """
    The code is told all the same, and what is left is killed.
    """
    process = start("threading.Thread(target=time.sleep, args=(600,)).start()\nsys.exit(7)")
    assert ended(process) == (7, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_command(number: signal.Signals) -> None:
    """It may clean up and decide how to end."""
    process = start(
        f"signal.signal({int(number)}, lambda *_: sys.exit(9))\n"
        "print('set', flush=True)\n"
        "time.sleep(600)"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "set\n"
    process.send_signal(number)
    assert ended(process)[0] == 9


def test_a_killed_parent_takes_the_command_along() -> None:
    """kill -9 of `gear push` ends the push."""
    process = start("time.sleep(600)")
    process.kill()
    assert ended(process) == (-signal.SIGKILL, "", "")

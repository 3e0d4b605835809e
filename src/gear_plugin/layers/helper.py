"""
Helper processes: both the structure check and the unpacking of a layer run in
processes that may die on what they are given.

Starting Python takes longer than most layers need, so a helper can be started
ahead: it loads its modules and waits for the line with its arguments.
Thread-safe.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any


class Helper:
    """
    Starts `command`, whose arguments are one JSON line on its standard input.

    *ahead*: keep one process waiting.  It ends by itself with this process,
    when its input is closed.
    """

    def __init__(self, command: Sequence[str], *, ahead: bool = False) -> None:
        self._command = list(command)
        self._ahead = ahead
        self._lock = threading.Lock()
        self._waiting = self._begin() if ahead else None

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A process at work on *arguments*, its input and output unbuffered pipes to the caller."""
        with self._lock:
            process, self._waiting = self._waiting, None
        if process is not None and process.poll() is not None:
            _reap(process)
            process = None
        process = process or self._begin()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end will tell
            process.stdin.write(json.dumps(arguments).encode() + b"\n")
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> int:
        """Close the pipes of *process*, wait for its end, and start the next one ahead."""
        status = _reap(process)
        if self._ahead:
            with self._lock:
                self._waiting = self._waiting or self._begin()
        return status

    def close(self) -> None:
        """End the process that waits; the next start is an ordinary one."""
        with self._lock:
            process, self._waiting, self._ahead = self._waiting, None, False
        if process is not None:
            _reap(process)

    def _begin(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )


def _reap(process: subprocess.Popen[bytes]) -> int:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    return process.wait()


def answer(said: bytes) -> dict[str, Any] | None:
    """The JSON object that a helper printed; None if it died before it had said all."""
    try:
        found = json.loads(said)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def ending(status: int) -> str:
    """`was killed by SIGKILL` or `ended with status 1`, from a process's return code."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"

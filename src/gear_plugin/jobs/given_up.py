"""
Commands that may hang in the kernel, such as mount(8), run so that no caller does.

A command that is over its time is killed.  One that not even SIGKILL ends (it
waits in the kernel) is left behind and remembered by its key: while it lives
no second one is started for that key, so a dead server costs one process, not
one for each attempt.  Safe from any thread.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gear_plugin.errors import TimedOut

_REAP_S = 0.5
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""Its messages are read by `nfs_mount`, which knows them in English."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    output: str
    said: str
    """Its standard error, in one line."""


class Commands:
    """Runs commands with a time limit; one object for a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, key: str, command: Sequence[str], deadline_s: float) -> Ended:
        """
        Run *command* until *deadline_s* (monotonic) at the latest, a moment
        for the killing not counted; raises TimedOut, OSError (no such command).
        """
        with self._lock:
            left = self._left.get(key)
            if left is not None and left.poll() is None:
                raise TimedOut(f"{key}: process {left.pid} still hangs in an earlier attempt")
            # Noted before it can hang: two threads do not start two.
            process = self._left[key] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
            )
        try:
            output, said = process.communicate(timeout=max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_REAP_S)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            raise TimedOut(f"{key}: no answer in time") from None
        lines = [line.strip() for line in said.decode(errors="replace").split("\n")]
        return Ended(
            process.returncode, output.decode(errors="replace"), "; ".join(filter(None, lines))
        )

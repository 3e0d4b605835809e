"""
Commands that may hang in the kernel, such as mount(8), run so that no caller does.

A command that is over its time is killed.  One that not even SIGKILL ends (it
waits in the kernel) is left behind and remembered: while it lives no second
one is started for the same thing, so a dead server costs one process, not one
for each attempt.  Safe from any thread.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gear_plugin.errors import TimedOut

_REAP_S = 0.5
_POLL_S = 0.02
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
        self._left: dict[str, list[subprocess.Popen[bytes]]] = {}

    def run(self, key: str, command: Sequence[str], deadline_s: float) -> Ended:
        """
        Run *command* until *deadline_s* (monotonic) at the latest, a moment
        for the killing not counted; *key* says what for.

        Raises TimedOut, also at once while an earlier one for *key* hangs;
        OSError: there is no such command.
        """
        process = self._start(key, command, is_alone=True)
        try:
            output, said = process.communicate(timeout=max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_REAP_S)
            _close(process)
            raise TimedOut("no answer in time") from None
        lines = [line.strip() for line in said.decode(errors="replace").split("\n")]
        return Ended(
            process.returncode, output.decode(errors="replace"), "; ".join(filter(None, lines))
        )

    def run_until(
        self, is_done: Callable[[], bool], key: str, command: Sequence[str], deadline_s: float
    ) -> bool:
        """
        Start *command* and return whether *is_done* came true; the command may go on.

        Raises OSError: there is no such command.
        """
        process = self._start(key, command, is_alone=False)
        _close(process)
        while True:
            has_ended = process.poll() is not None
            if is_done():
                return True
            if has_ended or time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Kill and reap what was left behind; waits for as long as that takes."""
        with self._lock:
            for process in [process for left in self._left.values() for process in left]:
                process.send_signal(signal.SIGKILL)
                process.wait()
            self._left.clear()

    def _start(
        self, key: str, command: Sequence[str], *, is_alone: bool
    ) -> subprocess.Popen[bytes]:
        with self._lock:
            left = [process for process in self._left.get(key, []) if process.poll() is None]
            if left and is_alone:
                raise TimedOut(f"process {left[0].pid} still hangs in an earlier attempt")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
            )
            # Noted before it can hang: two threads do not start two.
            self._left[key] = [*left, process]
            return process


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()

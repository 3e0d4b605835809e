"""
Functions run apart, each in a child process that may hang or die.

A call that touches a dead NFS or FUSE mount may never return, not even for a
signal, and then its thread, or a child that is waited for, would hold up this
process's own end too.  So a child that is over its time is killed and left
behind: init reaps it when the kernel lets it go.  What it had found until
then counts.

To be called while no other thread of this process holds locks (fork(2)).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import struct
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 16
_REAP_S = 0.5


@dataclass(slots=True)
class Outcome:
    """What one function gave; `error`: what it raised; `trouble`: why its process did not end."""

    values: list[Any] = field(default_factory=list)
    error: BaseException | None = None
    trouble: str = ""


def run_apart(
    functions: Sequence[Callable[[], Iterable[object]]], *, timeout_s: float
) -> list[Outcome]:
    """
    Run all *functions* at the same time; what each yielded, in their order.

    Returns after *timeout_s* at the latest.  Values and exceptions must
    survive pickling.  Their standard streams are /dev/null.
    """
    children = [_Child(function) for function in functions]
    deadline_s = time.monotonic() + timeout_s
    try:
        waiting = {child.pipe: child for child in children}
        while waiting and (left_s := deadline_s - time.monotonic()) > 0:
            ready, _, _ = select.select(list(waiting), [], [], left_s)
            for pipe in ready:
                if not waiting[pipe].receive():
                    del waiting[pipe]
        for child in waiting.values():
            child.outcome.trouble = f"no answer within {timeout_s:g} s"
    finally:
        for child in children:
            child.end()
    return [child.outcome for child in children]


def call_apart(function: Callable[[], object], *, timeout_s: float) -> Outcome:
    """Run one *function*; what it returned is the outcome's only value."""
    (outcome,) = run_apart([lambda: [function()]], timeout_s=timeout_s)
    return outcome


class _Child:
    """One process, as its parent sees it."""

    def __init__(self, function: Callable[[], Iterable[object]]) -> None:
        self.outcome = Outcome()
        self._received = b""
        self._is_whole = False
        self.pipe, writer = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of threads that exist, whatever they hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            _be_child(function, writer)
        os.close(writer)

    def receive(self) -> bool:
        """Take in what is there; False: the child has closed its end."""
        data = os.read(self.pipe, _READ_BYTES)
        self._received += data
        while len(self._received) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._received)
            end = _LENGTH.size + size
            if len(self._received) < end:
                break
            kind, value = pickle.loads(self._received[_LENGTH.size : end])  # noqa: S301 - our own
            self._received = self._received[end:]
            if kind == "value":
                self.outcome.values.append(value)
            elif kind == "error":
                self.outcome.error = value
            else:
                self._is_whole = True
        return bool(data)

    def end(self) -> None:
        """Kill it if need be, and reap it if that is quick."""
        os.close(self.pipe)
        with contextlib.suppress(ProcessLookupError):
            if not self._is_whole:
                os.kill(self._pid, signal.SIGKILL)
        deadline_s = time.monotonic() + _REAP_S
        status = 0
        while time.monotonic() < deadline_s:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.001)
        if not self._is_whole and not self.outcome.trouble:
            self.outcome.trouble = f"ended with {_cause(status)}"


def _cause(status: int) -> str:
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status >> 8}"


def _be_child(function: Callable[[], Iterable[object]], pipe: int) -> NoReturn:
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        try:
            for value in function():
                _send(pipe, "value", value)
        except Exception as error:
            error.add_note(traceback.format_exc())
            _send(pipe, "error", error)
        _send(pipe, "end", None)
    finally:
        # Not the parent's clean-up: no atexit, no buffers of its streams.
        os._exit(0)


def _send(pipe: int, kind: str, value: object) -> None:
    data = pickle.dumps((kind, value))
    data = _LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(pipe, data) :]

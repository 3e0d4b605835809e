"""
Ending on time, also when a thread hangs in the kernel.

No signal ends a thread that waits for a hung share (fsync on NFS, a FUSE
request on its way), and a process does not end before its threads: the shell
would get neither a prompt nor an exit code.  So the work runs in a child,
which tells its exit code before it tries to end; the parent ends with that
code, and the kernel kills what is left of the child when it can.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
_POLL_S = 0.2
_END_S = 1.0
"""For a child that has told its code to end by itself."""
_INTERRUPT_S = 15.0
"""For a child to answer an interrupt; then it hangs, and is left."""
_PR_SET_PDEATHSIG = 1
_SI_KERNEL = 0x80
"""A terminal's signal, which the child got as well (sigaction(2))."""


def run(main: Callable[[], None], *, interrupted: int) -> NoReturn:
    """
    Run *main* in a child, and end as it ends: with its exit code, or by its signal.

    To be called before any thread is started.  *interrupted*: the exit code
    if an interrupt gets no answer.
    """
    ours, childs = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(ours)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _work(main, childs)
    os.close(childs)
    code = _wait(child, ours, interrupted)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(parent, -code)
    os._exit(code)


def _work(main: Callable[[], None], pipe: int) -> NoReturn:
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(pipe, bytes([code & 0xFF]))
    sys.exit(code)


def _wait(child: int, pipe: int, interrupted: int) -> int:
    """The child's exit code, or its signal as a negative number."""
    code, leave_s = None, float("inf")
    while True:
        found = signal.sigtimedwait(_SIGNALS, _POLL_S)
        if found is not None and found.si_signo != signal.SIGCHLD:
            if found.si_code != _SI_KERNEL:
                os.kill(child, found.si_signo)
            if found.si_signo == signal.SIGINT and code is None:
                code, leave_s = interrupted, time.monotonic() + _INTERRUPT_S
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if select.select([pipe], [], [], 0)[0] and (told := os.read(pipe, 1)):
            code, leave_s = told[0], time.monotonic() + _END_S
        if code is not None and time.monotonic() >= leave_s:
            return code

"""
The process at the top: pid 1 of the managed plugin, or of a shell's `gear graphdriver`.

    supervisor
      +-- api      the plugin socket; decides and mounts
      +-- client   the only writer of the caches
      +-- fuse     the lazy layer; a new mount point at each start

Each is started again when it ends, with a growing pause when it ends soon
after its start.  None of them can take a running container along: mounts
belong to the kernel, and the truth is on disk.

Containers that stand on the mount of a FUSE daemon that died cannot be moved
to the new one.  They are healed by filling the cache instead: overlayfs asks
`public/` first, so once an object is there, they open it.  So after each
start of a FUSE daemon the client is told to complete every image that was
mounted before, and a new client is told again.

The watchdog kills a FUSE daemon that answers no `statfs` and finishes no
request for `watchdog_s`; killing alone may leave requests waiting, so its
connection is then aborted.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from gear_plugin.errors import Conflict, GearError
from gear_plugin.rootfs import Generation, LazyLayer, mounts, unmount

log = logging.getLogger(__name__)

_POLL_S = 0.1
_STOP_S = 8.0
"""dockerd kills the plugin 10 s after SIGTERM."""
_KILL_S = 0.5
_HEAL_AGAIN_S = 1.0
_STEADY_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


@dataclass
class Child:
    """One process that is kept running."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    ended: Callable[[], None] = lambda: None
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    not_before: float = 0.0
    pause_s: float = field(default=_FIRST_PAUSE_S)

    def tend(self, now: float) -> None:
        """Start the process if it does not run and its pause is over."""
        if self.process is not None and self.process.poll() is not None:
            log.warning("%s ended with status %d", self.name, self.process.returncode)
            self.process = None
            self.ended()
            steady = now - self.started_at > _STEADY_S
            self.pause_s = _FIRST_PAUSE_S if steady else min(self.pause_s * 2, _LONGEST_PAUSE_S)
            self.not_before = now + self.pause_s
        if self.process is None and now >= self.not_before:
            self.process, self.started_at = self.start(), now
            log.info("%s is process %d", self.name, self.process.pid)

    def signal(self, number: int) -> None:
        """Send a signal if the process runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


class Supervisor:
    """
    Starts, watches and restarts the three processes.

    *commands* has the argv of `api`, `client` and `fuse`; the FUSE daemon's
    gets its mount point and its ready pipe's number appended.
    *heal* is called after each start of the FUSE daemon and *resume* after each
    start of the client but the first, in threads of their own, and again
    until they raise no GearError.
    """

    def __init__(
        self,
        run: Path,
        commands: Mapping[str, list[str]],
        *,
        lazy: LazyLayer,
        heal: Callable[[], None],
        resume: Callable[[], None] = lambda: None,
        watchdog_s: float,
    ) -> None:
        self._run = run
        self._commands = commands
        self._lazy = lazy
        self._heal, self._resume = heal, resume
        self._watchdog_s = watchdog_s
        self._stopping = threading.Event()
        self._client_is_new = True
        self._watch = _Watch()
        self._lock: TextIO | None = None
        self._fuse = Child("fuse", self._start_fuse, self._fuse_ended)
        self._children = [
            Child("api", lambda: subprocess.Popen(commands["api"])),
            Child("client", self._start_client, self._client_ended),
            self._fuse,
        ]

    def serve(self) -> None:
        """Run until SIGTERM or SIGINT.  Raises Conflict: another supervisor has this folder."""
        self._run.mkdir(parents=True, exist_ok=True)
        self._run.chmod(0o700)
        self._lock = (self._run / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise Conflict(f"another gear graphdriver runs on {self._run}") from error
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        self._lazy.retract()
        self._detach_all()
        while not self._stopping.is_set():
            for child in self._children:
                child.tend(time.monotonic())
            self._reap_orphans()
            if self._watch.hung(self._watchdog_s):
                log.error("the FUSE daemon hangs; killing it")
                self._fuse.signal(signal.SIGKILL)
            self._stopping.wait(_POLL_S)
        self._stop()

    def _start_client(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._commands["client"])
        if not self._client_is_new:
            self._keep_trying(self._resume)
        return process

    def _client_ended(self) -> None:
        self._client_is_new = False

    def _start_fuse(self) -> subprocess.Popen[bytes]:
        number, point = self._lazy.new_mountpoint()
        ready_r, ready_w = os.pipe()
        command = [*self._commands["fuse"], "--mountpoint", str(point), "--ready", str(ready_w)]
        process = subprocess.Popen(command, pass_fds=(ready_w,))
        os.close(ready_w)
        generation = Generation(number, process.pid, str(point))
        threading.Thread(target=self._when_ready, args=(generation, ready_r), daemon=True).start()
        return process

    def _when_ready(self, generation: Generation, ready: int) -> None:
        """Publish the daemon once it answers, heal, then listen to its heartbeat."""
        with open(ready, "rb", buffering=0) as pipe:
            if not pipe.read(1):
                return
            try:
                self._watch.begin(generation)
            except OSError as error:
                log.warning("the lazy layer ended right after its start: %s", error.strerror)
                return
            self._lazy.publish(generation)
            log.info("the lazy layer is on %s", generation.mountpoint)
            self._keep_trying(self._heal)
            while pipe.read(64):
                self._watch.progress(generation)

    def _keep_trying(self, step: Callable[[], None]) -> None:
        """Run *step* in a thread of its own until it succeeds: the client may be down too."""

        def run() -> None:
            while not self._stopping.is_set():
                try:
                    step()
                except GearError as error:
                    log.warning("containers may miss objects until they are fetched: %s", error)
                    self._stopping.wait(_HEAL_AGAIN_S)
                except Exception:
                    log.exception("a bug in healing")
                    return
                else:
                    return

        threading.Thread(target=run, daemon=True).start()

    def _fuse_ended(self) -> None:
        self._lazy.retract()
        minor = self._watch.end()
        if minor is not None:
            with contextlib.suppress(GearError, OSError):
                self._lazy.abort(minor, self._run / "fusectl")
        self._lazy.detach_dead()

    def _reap_orphans(self) -> None:
        """As pid 1, wait for whatever the children left behind."""
        if os.getpid() != 1:
            return
        own = {child.process.pid for child in self._children if child.process is not None}
        with contextlib.suppress(ChildProcessError):
            look = os.WEXITED | os.WNOHANG | os.WNOWAIT
            while (info := os.waitid(os.P_ALL, 0, look)) is not None:
                if info.si_pid in own:
                    return
                os.waitpid(info.si_pid, os.WNOHANG)

    def _stop(self) -> None:
        """The api first, so that nothing is mounted on a layer that goes."""
        deadline = time.monotonic() + _STOP_S
        for child in self._children:
            child.signal(signal.SIGTERM)
            if child.process is not None:
                try:
                    child.process.wait(max(deadline - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    child.signal(signal.SIGKILL)
                    self._await_killed(child)
        self._lazy.retract()
        self._detach_all()

    @staticmethod
    def _await_killed(child: Child) -> None:
        assert child.process is not None
        try:
            child.process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            # A thread of it is in the kernel, waiting for a store that hangs.
            log.error("%s (process %d) cannot be killed yet", child.name, child.process.pid)

    def _detach_all(self) -> None:
        """
        Detach the indexes, views and FUSE mounts below the run folder, ours or a
        predecessor's; overlays that stand on one keep it alive.
        """
        for point, _ in list(mounts())[::-1]:
            if self._run in point.parents:
                with contextlib.suppress(GearError):
                    unmount(point, lazy=True)
        self._lazy.detach_dead()


class _Watch:
    """
    Whether the FUSE daemon still lives: it answers `statfs`, or finishes requests.

    A daemon whose workers all wait for a slow store answers no statfs but is
    not hung, as each of its requests ends in time.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._generation: Generation | None = None
        self._minor: int | None = None
        self._alive_at = 0.0

    def begin(self, generation: Generation) -> None:
        """Watch *generation*, which has just answered."""
        with self._guard:
            self._generation = generation
            device = os.lstat(generation.mountpoint).st_dev
            # Only an unnamed device is a FUSE connection; aborting by the
            # minor number of a disk could hit somebody else's.
            self._minor = os.minor(device) if os.major(device) == 0 else None
            self._alive_at = time.monotonic()
        threading.Thread(target=self._ask, args=(generation,), daemon=True).start()

    def end(self) -> int | None:
        """Stop watching; the minor device number that names the connection, if there was one."""
        with self._guard:
            self._generation, minor, self._minor = None, self._minor, None
        return minor

    def progress(self, generation: Generation) -> None:
        """The daemon of *generation* finished something."""
        with self._guard:
            if self._generation == generation:
                self._alive_at = time.monotonic()

    def hung(self, limit_s: float) -> bool:
        """Whether there has been no sign of life for *limit_s* seconds."""
        with self._guard:
            late = time.monotonic() - self._alive_at > limit_s
            return self._generation is not None and late

    def _ask(self, generation: Generation) -> None:
        """Ask for statfs again and again, from a thread that may hang with the daemon."""
        while self._generation == generation:
            try:
                os.statvfs(generation.mountpoint)
            except OSError:
                return
            self.progress(generation)
            time.sleep(1)

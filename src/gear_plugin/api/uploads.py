"""
`POST /upload`: building and pushing a local image, as a job in the background.

A job is `gear build` and then `gear push`, each a process of its own: what they
need in memory goes with them, and they say what they do as they do in a
terminal.  Both are safe to repeat, so an upload that was interrupted is asked
for again; one that is under way when this process ends goes on by itself.

Jobs are remembered until the process ends, the last `REMEMBERED` of them.
Safe from any thread.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gear_plugin.errors import GearError, ImageNotFound, Unavailable
from gear_plugin.names import ImageId

log = logging.getLogger(__name__)

REMEMBERED = 256
AT_ONCE = 1
"""A build reads all of an image and hashes it: two would only take turns at the disk."""
LIMIT_S = 6 * 3600.0
"""An engine that hangs must not keep all later uploads waiting."""
_MAX_QUEUED = 32
_MAX_RESULT_BYTES = 1 << 20
_MAX_LINE = 500

State = Literal["queued", "running", "done", "failed"]


@dataclass(slots=True)
class _Job:
    image: ImageId
    state: State = "queued"
    step: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    queued_s: float = field(default_factory=time.time)
    ended_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "image": str(self.image),
            "state": self.state,
            "step": self.step,
            "result": self.result,
            "error": self.error,
            "queued_s": int(self.queued_s),
            "ended_s": None if self.ended_s is None else int(self.ended_s),
        }


class Uploads:
    """
    Runs jobs, one of each image at a time.

    *command* gives the argv of `build` or `push` of an image, or raises GearError; the process
    prints its steps on stderr, a line each, and its result on stdout, as JSON.
    One that runs longer than *limit_s* is killed.
    """

    def __init__(
        self, command: Callable[[str, ImageId], Sequence[str]], *, limit_s: float = LIMIT_S
    ) -> None:
        self._command, self._limit_s = command, limit_s
        self._lock = threading.Lock()
        self._jobs: dict[ImageId, _Job] = {}
        self._queue: deque[_Job] = deque()
        self._running = 0

    def start(self, image: ImageId) -> dict[str, Any]:
        """
        Have *image* uploaded; the job that does it, the one under way if there is one.

        Raises Unavailable when too many wait.
        """
        with self._lock:
            job = self._jobs.get(image)
            if job is not None and job.state in ("queued", "running"):
                return job.as_json()
            if len(self._queue) >= _MAX_QUEUED:
                raise Unavailable(f"{_MAX_QUEUED} uploads wait for their turn; try again later")
            # The latest last, so that the oldest are forgotten first.
            self._jobs.pop(image, None)
            job = self._jobs[image] = _Job(image)
            self._queue.append(job)
            self._forget_old()
            if self._running < AT_ONCE:
                self._running += 1
                threading.Thread(target=self._work, name="upload", daemon=True).start()
            return job.as_json()

    def progress(self, image: ImageId) -> dict[str, Any]:
        """The last job of *image*; raises ImageNotFound."""
        with self._lock:
            job = self._jobs.get(image)
            if job is None:
                raise ImageNotFound(f"nobody asked this node to upload {image} since it started")
            return job.as_json()

    def _forget_old(self) -> None:
        ended = [image for image, job in self._jobs.items() if job.state in ("done", "failed")]
        for image in ended[: max(len(self._jobs) - REMEMBERED, 0)]:
            del self._jobs[image]

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._running -= 1
                    return
                job = self._queue.popleft()
                job.state = "running"
            try:
                error = self._upload(job)
            except Exception as bug:
                log.exception("a bug in the upload of %s", job.image)
                error = f"internal error: {type(bug).__name__}"
            with self._lock:
                job.state, job.error = "failed" if error else "done", error
                job.ended_s = time.time()
            if error:
                log.warning("upload of %s failed: %s", job.image, error)
            else:
                log.info("uploaded %s", job.image)

    def _upload(self, job: _Job) -> str:
        """Build, push; why it failed, or nothing."""
        for verb, image in (("build", job.image), ("push", job.image.gear)):
            error = self._run(job, verb, image)
            if error:
                return f"gear {verb} {image}: {error}"
        return ""

    def _run(self, job: _Job, verb: str, image: ImageId) -> str:
        with self._lock:
            job.step = f"gear {verb} {image}"
        log.info("gear %s %s", verb, image)
        # A file and not a pipe, as only the steps are read while it runs.
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    list(self._command(verb, image)),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                )
            except OSError as error:
                return f"cannot be started ({error.strerror})"
            except GearError as error:
                return str(error)
            last = self._follow(job, verb, process)
            output.seek(0)
            answer = output.read(_MAX_RESULT_BYTES).decode(errors="replace")
        if process.returncode == -signal.SIGKILL:
            return f"was killed, for want of memory or after {self._limit_s:g} s"
        if process.returncode:
            return last.removeprefix("gear: ") or f"ended with status {process.returncode}"
        try:
            result = json.loads(answer)
        except ValueError:
            return f"said no result, but {answer[:_MAX_LINE]!r}"
        with self._lock:
            job.result = {**job.result, verb: result}
        return ""

    def _follow(self, job: _Job, verb: str, process: subprocess.Popen[str]) -> str:
        """Note what *process* says until it ends; its last line."""
        last = ""
        over = threading.Timer(self._limit_s, process.kill)
        over.daemon = True
        over.start()
        with process:
            assert process.stderr is not None
            for line in process.stderr:
                last = line.strip()[:_MAX_LINE] or last
                with self._lock:
                    job.step = f"{verb}: {last}"
        over.cancel()
        return last

"""
Filling in, in the background, what images still lack.

An image whose objects are all here needs no network and no FUSE.  One image
is completed once at a time; all images together use a few fetches at a time,
so that what containers open now goes first.  What fails is tried again, with
growing pauses, for as long as the image is wanted.  Safe from any thread.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from gear_plugin.content.fetch import Fetcher
from gear_plugin.digest import Digest
from gear_plugin.errors import GearError, ImageNotFound

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 300.0


@dataclass(slots=True, eq=False)
class _Work:
    """What one image still lacks."""

    image: Digest
    stopped: threading.Event = field(default_factory=threading.Event)
    left: int = 0
    failure: GearError | None = None
    """The last one of this round."""


class Completer:
    """
    Completes images through *fetcher*, *width* objects at a time in all.

    *objects_of* lists an image's objects; it may raise GearError.
    *first_pause_s* is the wait before failed objects are tried again; it
    doubles up to 5 minutes.  *rounds*: how often at most; 0: until they are here.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        objects_of: Callable[[Digest], Iterable[Digest]],
        *,
        width: int = 4,
        first_pause_s: float = 1.0,
        rounds: int = 0,
    ) -> None:
        self._fetcher = fetcher
        self._objects_of = objects_of
        self._width = width
        self._first_pause_s = first_pause_s
        self._rounds = rounds
        self._slots = threading.Semaphore(width)
        self._lock = threading.Lock()  # guards _works
        self._works: dict[Digest, _Work] = {}

    def start(self, image: Digest) -> None:
        """Begin to complete *image*, unless that is under way; returns at once."""
        with self._lock:
            if image in self._works:
                return
            work = self._works[image] = _Work(image)
        threading.Thread(target=self._run, args=(work,), name="complete", daemon=True).start()

    def stop(self, image: Digest) -> None:
        """*image* is not wanted any more; fetches under way may still end."""
        with self._lock:
            work = self._works.pop(image, None)
        if work is not None:
            work.stopped.set()

    def stop_all(self) -> None:
        """The same for every image."""
        for image in self.pending():
            self.stop(image)

    def pending(self) -> dict[Digest, int]:
        """The images under way, each with how many objects it still lacks (0: just begun)."""
        with self._lock:
            return {image: work.left for image, work in self._works.items()}

    def _run(self, work: _Work) -> None:
        try:
            self._complete(work)
        except GearError as error:
            log.warning("image %s cannot be completed: %s", work.image.hex, error)
        except Exception:
            log.exception("internal error: image %s cannot be completed", work.image.hex)
        finally:
            with self._lock:
                if self._works.get(work.image) is work:
                    del self._works[work.image]

    def _complete(self, work: _Work) -> None:
        missing = list(dict.fromkeys(self._objects_of(work.image)))
        pause_s = self._first_pause_s
        for number in itertools.count(1):
            if not missing or work.stopped.is_set():
                break
            work.left = len(missing)
            missing = self._round(work, missing)
            if number == self._rounds:
                return
            if missing and not work.stopped.is_set():
                log.warning(
                    "image %s lacks %d objects (%s); trying again in %g s",
                    work.image.hex,
                    len(missing),
                    work.failure,
                    pause_s,
                )
                work.stopped.wait(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        if not missing:
            log.info("image %s is complete", work.image.hex)

    def _round(self, work: _Work, missing: list[Digest]) -> list[Digest]:
        """Try every missing object once; those that failed."""
        failed: list[Digest] = []
        for part in self._fetcher.parts(work.image, missing):
            if not work.stopped.is_set():
                self._fetcher.fetch_ahead(work.image, part)
            self._try_all(work, part, failed)
        return failed

    def _try_all(self, work: _Work, missing: list[Digest], failed: list[Digest]) -> None:
        todo = iter(missing)
        lock = threading.Lock()
        helpers = [
            threading.Thread(target=self._drain, args=(work, todo, failed, lock), daemon=True)
            for _ in range(min(self._width, len(missing)))
        ]
        for helper in helpers:
            helper.start()
        for helper in helpers:
            helper.join()

    def _drain(
        self, work: _Work, todo: Iterator[Digest], failed: list[Digest], lock: threading.Lock
    ) -> None:
        while not work.stopped.is_set():
            with lock:
                digest = next(todo, None)
            if digest is None:
                return
            is_here = self._try(work, digest)
            with lock:
                if is_here:
                    work.left -= 1
                else:
                    failed.append(digest)

    def _try(self, work: _Work, digest: Digest) -> bool:
        try:
            with self._slots:
                self._fetcher.fetch(work.image, digest)
        except ImageNotFound:
            log.info("image %s left while it was being completed", work.image.hex)
            work.stopped.set()
        except GearError as error:
            work.failure = error
        except Exception:
            log.exception("internal error: %s for image %s", digest, work.image.hex)
        else:
            return True
        return False

"""
Starting images in the way that earlier starts went.

A container opens its files one after another, and each missing one is a round
trip.  So the client notes what is opened in the first moments after an image
was mounted, and keeps that in the store as the image's *start profile*; a node
that mounts the image later fetches those objects at once, several at a time and
in that order, while its container is still being set up.  An open of an object
that is on its way waits for it.  Nobody has to run or to configure anything.

A profile only ever gains objects, up to LIMIT_BYTES of content, lest one
container that reads everything makes every later start a download of the whole
image.  And no more is fetched ahead than a part of the room there is: objects
of a mounted image cannot be evicted, and what is opened goes first.

What comes from the store is not trusted: only objects of the image itself are
fetched.  Safe from any thread; whatever waits for the store does so in a
thread of its own that nobody waits for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gear_plugin.content.complete import Completer
from gear_plugin.content.fetch import Fetcher
from gear_plugin.digest import Digest

log = logging.getLogger(__name__)

LIMIT_BYTES = 256 << 20
_SHARE_OF_ROOM = 0.25


class Profiles(Protocol):
    """Where start profiles are kept; see DirectoryProfiles."""

    def load(self, image: Digest) -> list[Digest]: ...
    def save(self, image: Digest, wanted: Sequence[Digest]) -> bool: ...


@dataclass(slots=True, eq=False)
class _Start:
    """One image that was mounted a moment ago."""

    image: Digest
    begun_s: float
    last_s: float
    ended: threading.Event = field(default_factory=threading.Event)
    opened: dict[Digest, None] = field(default_factory=dict)
    """In the order of their first opens."""


class Starts:
    """
    Learns start profiles, and fetches what they name through *fetcher*.

    *size_of* tells an object's size by an image's index; None: it is not in it.
    *room_bytes* tells how much the cache can still take.
    A start is over *window_s* after the mount, or when nothing was missing for
    *quiet_s*.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        profiles: Profiles,
        size_of: Callable[[Digest, Digest], int | None],
        room_bytes: Callable[[], int],
        *,
        width: int = 8,
        window_s: float = 60.0,
        quiet_s: float = 10.0,
    ) -> None:
        self._profiles = profiles
        self._size_of = size_of
        self._room_bytes = room_bytes
        self._ahead = Completer(fetcher, self._wanted, width=width, rounds=1)
        self._window_s = window_s
        self._quiet_s = quiet_s
        self._lock = threading.Lock()  # guards the two below
        self._starts: dict[Digest, _Start] = {}
        self._fetched: set[Digest] = set()
        """Images whose profile was fetched; once is enough while they are here."""

    def mounted(self, image: Digest) -> None:
        """*image* was mounted: fetch ahead, and note what is missing all the same."""
        now_s = time.monotonic()
        with self._lock:
            is_first = image not in self._fetched
            self._fetched.add(image)
            if image not in self._starts:
                start = self._starts[image] = _Start(image, now_s, now_s)
                threading.Thread(target=self._learn, args=(start,), daemon=True).start()
        if is_first:
            self._ahead.start(image)

    def opened(self, image: Digest, digest: Digest) -> None:
        """A container opened an object that it had to wait for."""
        with self._lock:
            start = self._starts.get(image)
            if start is not None:
                start.opened.setdefault(digest)
                start.last_s = time.monotonic()

    def forgotten(self, image: Digest) -> None:
        """*image* left the node."""
        self._ahead.stop(image)
        with self._lock:
            self._fetched.discard(image)
            start = self._starts.get(image)
        if start is not None:
            start.ended.set()

    def stop(self) -> None:
        """Fetch nothing more."""
        self._ahead.stop_all()

    def _wanted(self, image: Digest) -> Iterator[Digest]:
        limit_bytes = min(LIMIT_BYTES, int(self._room_bytes() * _SHARE_OF_ROOM))
        wanted = self._within_limits(image, self._profiles.load(image), limit_bytes)
        if wanted:
            log.info("image %s: fetching %d objects ahead", image.hex[:12], len(wanted))
        return iter(wanted)

    def _within_limits(
        self, image: Digest, digests: Iterable[Digest], left_bytes: int
    ) -> list[Digest]:
        """Those of the image, until they are too much."""
        kept = []
        for digest in dict.fromkeys(digests):
            size_bytes = self._size_of(image, digest)
            if size_bytes is not None and size_bytes <= left_bytes:
                left_bytes -= size_bytes
                kept.append(digest)
        return kept

    def _learn(self, start: _Start) -> None:
        """Wait for the end of a start, and keep what it taught."""
        while not start.ended.wait(self._quiet_s / 5):
            now_s = time.monotonic()
            if now_s - start.begun_s > self._window_s or now_s - start.last_s > self._quiet_s:
                break
        with self._lock:
            del self._starts[start.image]
            opened = list(start.opened)
        try:
            if opened:
                known = self._profiles.load(start.image)
                wanted = self._within_limits(start.image, [*known, *opened], LIMIT_BYTES)
                if wanted != known and self._profiles.save(start.image, wanted):
                    log.info("image %s: a start wants %d objects", start.image.hex, len(wanted))
        except Exception:
            log.exception("internal error: nothing learned of image %s", start.image.hex)

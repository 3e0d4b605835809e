"""
The nodes of the cluster at hand, for the many who ask a manager about them.

One thread waits for changes in the roster, so a thousand nodes that wait for
the next version cost the catalog as much as one.  While the catalog does not
answer, what was last read stays the answer.

Safe from any thread.
"""

from __future__ import annotations

import logging
import threading
import time

from gear_plugin.catalog import Roster
from gear_plugin.cluster import Members
from gear_plugin.errors import GearError, SourceUnavailable

log = logging.getLogger(__name__)

_WAIT_S = 25.0
_RETRY_S = 1.0
_UNKNOWN = -1
"""No version is."""


class Lookout:
    """
    What *roster* says of the nodes; nothing is known before `start`.

    *limit*: so many callers may wait at once.  *settle_s*: changes that come
    so soon one after another are told together.  When a thousand nodes join in
    five seconds, that is 25 answers to each of them instead of a thousand.
    """

    def __init__(self, roster: Roster, *, limit: int, settle_s: float = 0.2) -> None:
        self._roster = roster
        self._limit = limit
        self._settle_s = settle_s
        self._changed = threading.Condition()  # guards everything below
        self._held: Members | None = None
        self._offers = 0
        self._waiting = 0
        self._stopped = threading.Event()

    @property
    def waiting(self) -> int:
        """How many callers wait now."""
        return self._waiting

    def start(self) -> None:
        """Begin to look, in a thread that ends after `stop`."""
        threading.Thread(target=self._look, name="lookout", daemon=True).start()

    def stop(self) -> None:
        """Look no more, and let go of who waits; what is known stays."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()

    def now(self) -> Members:
        """The nodes as last read; raises SourceUnavailable before the first time."""
        if self._held is None:
            raise SourceUnavailable("the catalog has not answered this manager yet; try again")
        return self._held

    def wait(self, version: int, timeout_s: float) -> Members:
        """
        The nodes, as soon as their version is not *version* (and has settled), or
        after *timeout_s*.

        At once when too many wait already.  Raises as `now` does.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            if self._waiting < self._limit:
                self._waiting += 1
                try:
                    self._changed.wait_for(
                        lambda: self.now().version != version or self._stopped.is_set(), timeout_s
                    )
                    left_s = max(0.0, deadline_s - time.monotonic())
                    self._changed.wait_for(self._stopped.is_set, min(left_s, self._settle_s))
                finally:
                    self._waiting -= 1
            return self.now()

    def offer(self, members: Members) -> None:
        """What a change of the roster has just answered: whoever waits need not wait to hear it."""
        with self._changed:
            if self._held is None or members.version > self._held.version:
                self._hold(members)
                self._offers += 1

    def _hold(self, members: Members) -> None:
        self._held = members
        self._changed.notify_all()

    def _look(self) -> None:
        is_failing = False
        while not self._stopped.is_set():
            offers, held = self._offers, self._held
            try:
                members = self._roster.wait(held.version if held else _UNKNOWN, _WAIT_S)
            except GearError as error:
                if not is_failing:
                    log.warning("the nodes of the cluster stay as they were known: %s", error)
                is_failing = True
                self._stopped.wait(_RETRY_S)
            except Exception:
                log.exception("internal error: cannot look after the nodes")
                self._stopped.wait(_RETRY_S)
            else:
                if is_failing:
                    log.info("the catalog answers again")
                is_failing = False
                self._take(members, offers)

    def _take(self, members: Members, offers: int) -> None:
        with self._changed:
            # A read that was overtaken by an offer may be the older of the two.  Without
            # that a lower version is true: the catalog was set up anew.
            is_overtaken = offers != self._offers
            if self._held is None or members.version != self._held.version:
                if is_overtaken and self._held and members.version < self._held.version:
                    return
                self._hold(members)

"""
Keeps a node's store mounted: a server that is down when the node starts is
tried again, and so is a mount that somebody took away.

Nobody waits for it.  While there is no mount the store's folder is empty, and
`DirectoryStore` calls that unavailable at once.  A mount whose server stalls
stays: the kernel connects again by itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from gear_plugin.errors import GearError

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 30.0
"""Between attempts, doubled each time; and between looks at a mount that is there."""


class NfsKeeper:
    """Calls *mount* (as `ensure_mounted`) in a thread of its own, again and again."""

    def __init__(
        self,
        mount: Callable[[], object],
        *,
        first_pause_s: float = FIRST_PAUSE_S,
        last_pause_s: float = LAST_PAUSE_S,
    ) -> None:
        self._mount = mount
        self._first_pause_s, self._last_pause_s = first_pause_s, last_pause_s
        self._stopped = threading.Event()
        self._settled = threading.Event()
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._keep, name="nfs", daemon=True)

    @property
    def trouble(self) -> str | None:
        """Why it is not mounted now; empty: it is; None: the first attempt is still under way."""
        return self._trouble

    def start(self, wait_s: float = 0.0) -> None:
        """Begin; returns when the first attempt is over, after *wait_s* at the latest."""
        self._thread.start()
        self._settled.wait(wait_s)

    def stop(self) -> None:
        """No further attempt begins; what is mounted stays."""
        self._stopped.set()

    def _keep(self) -> None:
        pause_s = self._first_pause_s
        while not self._stopped.is_set():
            trouble = self._attempt()
            if trouble != self._trouble:
                if trouble:
                    log.warning("%s", trouble)
                elif self._trouble:
                    log.info("the store is mounted")
            self._trouble = trouble
            self._settled.set()
            if self._stopped.wait(pause_s if trouble else self._last_pause_s):
                return
            pause_s = min(pause_s * 2, self._last_pause_s) if trouble else self._first_pause_s

    def _attempt(self) -> str:
        try:
            self._mount()
        except GearError as error:
            return str(error)
        except Exception:
            log.exception("internal error while mounting the store")
            return "internal error; see the log"
        return ""

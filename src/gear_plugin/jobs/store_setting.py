"""
Having the store in use that the cluster names: mounted first, if it is on NFS.

Mounting may take as long as the server pleases, so it is done in a thread of
its own that nobody waits for.  It is tried again until it works, and looked
after for as long as the cluster names it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from gear_plugin.cluster import Settings
from gear_plugin.content.chosen import ChosenStore
from gear_plugin.errors import GearError

log = logging.getLogger(__name__)

NFS = "nfs://"
_MOUNT_S = 30.0
_LONGEST_PAUSE_S = 30.0
"""Between attempts, doubled each time; and between looks at a mount that is there."""

Mount = Callable[[str, Path, float], None]
"""Has an NFS address mounted at a folder, in so many seconds; safe to repeat; raises GearError."""


class StoreSetting:
    """
    Keeps *store* at what the cluster's settings say, *own* when they say nothing.

    NFS is mounted at *nfs* with *mount*.  *first_pause_s* is the wait after a
    mount that failed; it doubles up to half a minute.  From any thread.
    """

    def __init__(
        self, store: ChosenStore, own: Path, nfs: Path, mount: Mount, *, first_pause_s: float = 1.0
    ) -> None:
        self._store = store
        self._own = own
        self._nfs = nfs
        self._mount = mount
        self._first_pause_s = first_pause_s
        self._lock = threading.Lock()  # guards the two below
        self._said: str | None = None
        self._superseded = threading.Event()

    def apply(self, settings: Settings) -> None:
        """These are the cluster's settings now; returns at once."""
        with self._lock:
            if settings.store == self._said:
                return
            self._said = settings.store
            self._superseded.set()
            superseded = self._superseded = threading.Event()
        if settings.store.startswith(NFS):
            args = (settings.store, superseded)
            threading.Thread(target=self._keep_nfs, args=args, name="mount", daemon=True).start()
            return
        path = Path(settings.store) if settings.store else self._own
        if not path.is_absolute():
            log.warning(
                "the cluster's store is neither nfs://HOST/EXPORT nor a directory: %.200r",
                settings.store,
            )
            return
        self._use(path)

    def stop(self) -> None:
        """Try to mount no more."""
        with self._lock:
            self._superseded.set()

    def _keep_nfs(self, address: str, superseded: threading.Event) -> None:
        pause_s, last_trouble, is_used = self._first_pause_s, "", False
        while not superseded.is_set():
            trouble = self._attempt(address)
            if trouble and trouble != last_trouble:
                log.warning("the store cannot be mounted: %s", trouble)
            last_trouble = trouble
            if not trouble:
                with self._lock:
                    if not is_used and not superseded.is_set():
                        self._use(self._nfs)
                is_used, pause_s = True, self._first_pause_s
            superseded.wait(pause_s if trouble else _LONGEST_PAUSE_S)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _attempt(self, address: str) -> str:
        """Why it could not be mounted; empty: it is."""
        try:
            self._mount(address, self._nfs, _MOUNT_S)
        except GearError as error:
            return str(error)
        except Exception:
            log.exception("internal error: %s is not mounted", address)
            return "internal error"
        return ""

    def _use(self, path: Path) -> None:
        self._store.use(path)
        log.info("the object store is %s", path)

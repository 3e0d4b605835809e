"""
Pushes under way, as a collector of garbage sees them.

    <root>/pushes/<16 hex>    empty; its writer lives as long as it is touched

Who is about to name objects *announces* it before looking which of them are
there, and *withdraws* when they are named.  `withdraw` says whether a collector
had given the announcement up meanwhile; then objects that were there may be
gone, and all of it is done again.  docs/decisions/0008 has the argument why
that is enough, whatever stops or sleeps for however long.

Removing the announcement is at the same time the check that it stood until then:
a name is removed once, and over NFS too it is the server that says by whom.

Threads: `renew` from any, the rest by one at a time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gear_plugin.content.base import Announcement, ObjectStore
from gear_plugin.content.incoming import Border
from gear_plugin.errors import GearError

T = TypeVar("T")

_RENEW_S = 60.0
_LAST_TRY_S = 1.0


class FileAnnouncement:
    """An announcement in the existing folder *folder*; *border* translates its OSErrors."""

    def __init__(self, folder: Path, border: Border) -> None:
        self._path = folder / secrets.token_hex(8)
        self._border = border
        self._renewed_s = time.monotonic()
        with border():
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))

    def renew(self) -> None:
        now_s = time.monotonic()
        if now_s - self._renewed_s >= _RENEW_S:
            self._renewed_s = now_s
            self.stands()

    def stands(self) -> bool:
        with self._border():
            try:
                # Without a time, so that a server stamps it with its own.
                os.utime(self._path)
            except FileNotFoundError:
                return False
        return True

    def withdraw(self) -> bool:
        with self._border():
            try:
                self._path.unlink()
            except FileNotFoundError:
                return False
        return True


def until_named(
    store: ObjectStore,
    put: Callable[[Announcement], T],
    name: Callable[[], object],
    *,
    call: Callable[[Callable[[], Any]], Any] = lambda function: function(),
) -> T:
    """
    What *put* returns, which puts objects into *store*; then *name* names them in a catalog.

    Announced, and both done again if a collector gave that up, so they must be
    safe to repeat; *put* should renew its announcement now and then.  *call*
    calls what may hang.  Raises what the store and the two raise; the
    announcement is withdrawn then, if the store answers.
    """
    while True:
        announcement = call(store.announce)
        try:
            result = put(announcement)
            # Most often it is noticed here, before anything names what is gone.
            if not call(announcement.stands):
                continue
            name()
        except (GearError, KeyboardInterrupt):
            _withdraw_if_it_answers(announcement)
            raise
        if call(announcement.withdraw):
            return result


def _withdraw_if_it_answers(announcement: Announcement) -> None:
    """What failed may be the store itself, which is not waited for any more."""

    def withdraw() -> None:
        with contextlib.suppress(GearError):
            announcement.withdraw()

    thread = threading.Thread(target=withdraw, daemon=True)
    thread.start()
    thread.join(_LAST_TRY_S)

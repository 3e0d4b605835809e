"""
What a collector does to a directory store, each step by itself.

    <root>/trash/<run>/<3 hex>/<61 hex>[.zst]    an object between use and removal

`<run>` is 16 hex digits, of the collector that threw it there.  A collector
throws one name away at most once, and treats what others left in the trash as
its own: so it does not matter who dies, or how many work at a time.  A name in
the trash that is there has been there since it was first seen.

`jobs.collect` puts the steps in order; docs/decisions/0008 says why in this one.
Errors are OSErrors, of which what others did first is none.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.content.shelves import StoredFile, stored_files
from gear_plugin.durable import TEMP_PREFIX, remove_stale, sync_directory


@dataclass(frozen=True, slots=True)
class Announced:
    """The announcements of pushes under way (`announce`), and the store's clock."""

    live: frozenset[str]
    dead: frozenset[str]
    """Those that were not renewed for too long."""
    now_s: float


class Trash:
    """The store in the directory *root*, for one run of a collector."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects = f"{root}/objects"
        self._trash = f"{root}/trash"
        self._run = f"{root}/trash/{secrets.token_hex(8)}"

    def objects(self) -> Iterator[StoredFile]:
        """Every file that is in use, or could be."""
        return stored_files(self._objects)

    def thrown(self) -> Iterator[StoredFile]:
        """Every file in the trash, of whichever run."""
        with contextlib.suppress(FileNotFoundError):
            for run in sorted(os.listdir(self._trash)):
                yield from stored_files(f"{self._trash}/{run}")

    def throw(self, file: StoredFile) -> bool:
        """Move one file to the trash; False: somebody else has taken it."""
        target = f"{self._run}/{file.name}"
        while True:
            try:
                os.rename(file.path, target)
            except FileNotFoundError:
                if not os.path.lexists(file.path):
                    return False
                # Another collector removes folders that are empty.
                with contextlib.suppress(FileNotFoundError):
                    os.makedirs(os.path.dirname(target), exist_ok=True)
            else:
                return True

    def put_back(self, file: StoredFile) -> None:
        """Give a file that was thrown away its place again, durably."""
        target = Path(self._objects, file.name)
        target.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(file.path, target)
        # Two folders: without this a crash could keep the removal alone.
        sync_directory(target.parent)
        self.remove(file)

    def remove(self, file: StoredFile) -> bool:
        """Remove a file for good; False: it was gone."""
        try:
            os.unlink(file.path)
        except FileNotFoundError:
            return False
        return True

    def tidy(self) -> None:
        """Remove the empty folders of the trash."""
        for run in _names(self._trash):
            for shard in _names(f"{self._trash}/{run}"):
                _remove_if_empty(f"{self._trash}/{run}/{shard}")
            _remove_if_empty(f"{self._trash}/{run}")

    def announced(self, dead_after_s: float) -> Announced:
        """
        Who has announced a push and not withdrawn it, at a moment during this call.

        Ages are differences between times of this very filesystem.
        """
        folder = self._root / "pushes"
        folder.mkdir(exist_ok=True)
        # Also so that an NFS client notices what others have made there.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=TEMP_PREFIX) as probe:
            now_s = os.fstat(probe.fileno()).st_mtime
            live: set[str] = set()
            dead: set[str] = set()
            for name in os.listdir(folder):
                if name.startswith(TEMP_PREFIX):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    age_s = now_s - os.stat(folder / name).st_mtime
                    (dead if abs(age_s) >= dead_after_s else live).add(name)
        remove_stale(folder, older_than_s=dead_after_s, now_s=now_s)
        return Announced(frozenset(live), frozenset(dead), now_s)

    def give_up(self, announcement: str) -> None:
        """Remove somebody's announcement: it is dead, or will find out when it withdraws."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._root}/pushes/{announcement}")


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_if_empty(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)

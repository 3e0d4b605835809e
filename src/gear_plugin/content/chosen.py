"""
The store of a node in a cluster: which one that is, the node may learn while it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from gear_plugin.content.directory import DirectoryStore
from gear_plugin.content.profiles import DirectoryProfiles
from gear_plugin.digest import Digest
from gear_plugin.errors import SourceUnavailable


class ChosenStore:
    """
    The objects and the start profiles of the directory that was named last.

    Before that it is unavailable, which is no word about what it holds.  What
    is being read is read on from where it was opened.  Safe from any thread.
    """

    name = "store"

    def __init__(self) -> None:
        self._store: DirectoryStore | None = None
        self._profiles: DirectoryProfiles | None = None

    def use(self, root: Path) -> None:
        """From now on it is the store below *root*."""
        self._store, self._profiles = DirectoryStore(root), DirectoryProfiles(root)

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        store = self._store
        if store is None:
            raise SourceUnavailable("the cluster's store is not known, or not mounted yet")
        with store.read(digest) as chunks:
            yield chunks

    def load(self, image: Digest) -> list[Digest]:
        """As `Profiles.load`; nothing while there is no store."""
        profiles = self._profiles
        return profiles.load(image) if profiles is not None else []

    def save(self, image: Digest, wanted: Sequence[Digest]) -> bool:
        """As `Profiles.save`; False while there is no store."""
        profiles = self._profiles
        return profiles.save(image, wanted) if profiles is not None else False

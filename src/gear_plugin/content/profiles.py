"""
Start profiles in the shared store: what nodes opened when they started an image.

    <root>/profiles/<image>    `gear start profile 1\\n`, then 32 bytes a digest,
                               in the order in which the objects were wanted

`<image>` is the hex digest of the image's index.  A profile is advice: one that
is missing, damaged or untrue costs time or bandwidth and nothing else, so it is
neither fsynced carefully nor locked, and of two nodes that learn at the same
moment one may have to learn again.  May block as long as the filesystem does.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.durable import remove_stale, write_once
from gear_plugin.errors import BadDigest, GearError

log = logging.getLogger(__name__)

_MAGIC = b"gear start profile 1\n"
_DIGEST_BYTES = 32
MAX_OBJECTS = 20_000
"""More is no start any more; 640 KB."""
_STALE_S = 24 * 3600.0
"""Nobody writes one profile for so long."""


class DirectoryProfiles:
    """The profiles below *root*, which is a DirectoryStore's."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "profiles"
        self._objects = root / "objects"

    def load(self, image: Digest) -> list[Digest]:
        """What is known to be wanted at a start of *image*, first things first; else nothing."""
        limit = len(_MAGIC) + MAX_OBJECTS * _DIGEST_BYTES
        try:
            with (self._folder / image.hex).open("rb") as file:
                data = file.read(limit)
        except OSError:
            return []
        if not data.startswith(_MAGIC) or (len(data) - len(_MAGIC)) % _DIGEST_BYTES:
            log.warning("the start profile of image %s is damaged", image.hex[:12])
            return []
        raw = range(len(_MAGIC), len(data), _DIGEST_BYTES)
        return [Digest(data[at : at + _DIGEST_BYTES]) for at in raw]

    def save(self, image: Digest, wanted: Sequence[Digest]) -> bool:
        """Replace the profile of *image*; False: this store takes none, which is no failure."""
        if not self._objects.is_dir():
            return False  # a share that is not mounted must not be filled
        try:
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir()
            with write_once(self._folder / image.hex) as file:
                file.write(_MAGIC + b"".join(digest.raw for digest in wanted[:MAX_OBJECTS]))
        except (OSError, GearError) as error:
            log.info("no start profile of image %s was kept: %s", image.hex[:12], error)
            return False
        return True

    def collect(
        self, known: Collection[Digest], *, older_than_s: float, now_s: float, is_dry_run: bool
    ) -> int:
        """
        Remove the profiles of images other than *known*; how many that were.

        Those of the last *older_than_s*, by the store's clock *now_s*, stay.
        """
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                with contextlib.suppress(BadDigest, FileNotFoundError):
                    is_known = Digest.from_hex(path.name) in known
                    if not is_known and abs(now_s - path.stat().st_mtime) >= older_than_s:
                        removed += 1
                        if not is_dry_run:
                            path.unlink()
            if not is_dry_run:
                remove_stale(self._folder, older_than_s=_STALE_S, now_s=now_s)
        return removed

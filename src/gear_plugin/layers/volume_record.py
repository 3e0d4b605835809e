"""
A volume's own folder, `volumes/<name>/`, and the files in it that say what it is.

    volume.json  what the volume is; written before the folder gets its name, so a
                 folder that exists is a volume
    gone.json    what it was, while it is being removed
    users/       who has mounted an image: an empty file for each, `<boot id>.<user>`;
                 neither making nor removing one needs a block of a full disk
    data/        what an ordinary volume holds
    upper/       what an image's volume adds to the image; empty if it is read-only
    work/        overlayfs's own
    whole/       for a moment, the whole image of which a part is shown
    merged/      where an image, or the part of it, is mounted

A removed volume has a name that begins with `.tmp-`, as one that is being made.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from gear_plugin.durable import boot_id, write_once
from gear_plugin.errors import VolumeNotFound

VOLUMES = "volumes"

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Shown:
    """What an image's volume shows; digests are 64 hex digits, sizes those of the whole image."""

    image: str
    """The Gear image's name, as it was asked for."""

    index: str
    writable: bool
    path: str
    """The folder of the image that was asked for."""

    folder: str
    """Where that is, links resolved: `/`, or names with a `/` before each."""

    files: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """What is written in `volume.json`."""

    name: str
    created_s: int
    """Unix time."""

    shown: Shown | None = None
    """None: an ordinary volume, with a folder of its own."""

    version: int = _VERSION


@dataclass(frozen=True, slots=True)
class VolumeFolder:
    """The paths of one volume."""

    path: Path

    @property
    def data(self) -> Path:
        """What an ordinary volume holds."""
        return self.path / "data"

    @property
    def upper(self) -> Path:
        """What an image's volume adds to the image."""
        return self.path / "upper"

    @property
    def work(self) -> Path:
        """overlayfs's working directory, on the same filesystem as `upper`."""
        return self.path / "work"

    @property
    def whole(self) -> Path:
        """Where the whole image is mounted while a part of it is bound to `merged`."""
        return self.path / "whole"

    @property
    def merged(self) -> Path:
        """Where what the volume shows is mounted."""
        return self.path / "merged"

    @property
    def _users(self) -> Path:
        return self.path / "users"

    def make(self, *, shows_image: bool) -> None:
        """Make its folders, but for `upper`."""
        image = (self._users, self.work, self.whole, self.merged)
        for path in image if shows_image else (self.data,):
            path.mkdir()
            path.chmod(0o755)

    def read(self) -> VolumeRecord:
        """The volume's record; raises VolumeNotFound."""
        try:
            fields = json.loads((self.path / "volume.json").read_bytes())
            shown = Shown(**fields["shown"]) if fields["shown"] else None
            return VolumeRecord(**{**fields, "shown": shown})
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VolumeNotFound(f"no volume {self.path.name}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise VolumeNotFound(
                f"volume {self.path.name} has a damaged record ({self.path}/volume.json)"
            ) from error

    def write(self, record: VolumeRecord) -> None:
        """Write the record, durably and in one step; raises StorageFull."""
        with write_once(self.path / "volume.json") as file:
            file.write(json.dumps(asdict(record)).encode())

    def disown(self) -> str | None:
        """
        Keep the image no more; its index, now or again when a removal broke
        off after this, and None if there is none.
        """
        gone = self.path / "gone.json"
        with contextlib.suppress(FileNotFoundError):
            (self.path / "volume.json").rename(gone)
        try:
            shown = json.loads(gone.read_bytes())["shown"]
            return str(shown["index"]) if shown else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def users(self) -> frozenset[str]:
        """Those who mounted an image's volume since this boot and have not unmounted it."""
        prefix = f"{boot_id()}."
        names = (path.name for path in self._users.iterdir())
        return frozenset(name.removeprefix(prefix) for name in names if name.startswith(prefix))

    def add_user(self, user: str) -> None:
        """Note a user."""
        (self._users / f"{boot_id()}.{user}").touch()

    def keep_users(self, users: Collection[str]) -> None:
        """Forget all users but these."""
        kept = {f"{boot_id()}.{user}" for user in users}
        for path in self._users.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)

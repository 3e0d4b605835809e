"""
A layer's own folder, `containers/<id>/`, and the file in it that says what it is.

    layer.json   parents, kind, and the index it carries; written before the
                 folder gets its name, so a folder that exists is a layer
    upper/       what the layer adds; work/: overlayfs's own; merged/: the mount
    applying/    an ApplyDiff under way; a layer that has it at start is half made
    replaced/    what an ApplyDiff has just replaced, on its way out
    committed    another layer stands on this one: mount it read-only from now on
    held         how many users its mount has; see `held`
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gear_plugin.errors import LayerNotFound

CONTAINERS = "containers"

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What is written in `layer.json`."""

    id: str
    parents: tuple[str, ...]
    """From the direct parent down to the lowest layer."""

    writable: bool
    """Made by CreateReadWrite: a container's layer."""

    index: str | None = None
    """The index digest (64 hex) if this layer is a Gear image's index."""

    version: int = _VERSION

    @property
    def parent(self) -> str:
        """The direct parent; empty: none."""
        return self.parents[0] if self.parents else ""


@dataclass(frozen=True, slots=True)
class LayerFolder:
    """The paths of one layer."""

    path: Path

    @property
    def upper(self) -> Path:
        """What the layer adds to its parents."""
        return self.path / "upper"

    @property
    def work(self) -> Path:
        """overlayfs's working directory, on the same filesystem as `upper`."""
        return self.path / "work"

    @property
    def merged(self) -> Path:
        """Where the layer is mounted."""
        return self.path / "merged"

    @property
    def applying(self) -> Path:
        """Where ApplyDiff unpacks."""
        return self.path / "applying"

    @property
    def replaced(self) -> Path:
        """What `upper` was before ApplyDiff."""
        return self.path / "replaced"

    @property
    def committed(self) -> Path:
        """Exists once another layer stands on this one."""
        return self.path / "committed"

    @property
    def held(self) -> Path:
        """How often the layer is held."""
        return self.path / "held"

    def read(self) -> Record:
        """The layer's record; raises LayerNotFound."""
        try:
            fields = json.loads((self.path / "layer.json").read_text())
            return Record(**{**fields, "parents": tuple(fields["parents"])})
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LayerNotFound(f"no layer {self.path.name}") from error
        except (ValueError, TypeError, KeyError) as error:
            # Not fsynced for most layers: a power failure may have cut it off.
            raise LayerNotFound(
                f"layer {self.path.name} has a damaged record ({self.path}/layer.json)"
            ) from error

    def write(self, record: Record, *, durable: bool = False) -> None:
        """Replace the record in one step; *durable*: after a power failure, too."""
        temporary = self.path / "layer.json.new"
        with temporary.open("w") as file:
            file.write(json.dumps(asdict(record)))
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.rename(self.path / "layer.json")

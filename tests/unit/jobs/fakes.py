"""An engine whose images are archives in memory, and a progress that remembers."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gear_plugin.errors import ImageNotFound, SourceUnavailable
from gear_plugin.jobs import Progress
from gear_plugin.names import ImageId
from tests.unit.jobs.saves import unpack


@dataclass
class FakeEngine:
    """Images by `name:tag`; the values are what `docker save` gives."""

    images: dict[str, bytes] = field(default_factory=dict)
    pushed: list[str] = field(default_factory=list)
    registry_is_down: bool = False

    def inspect(self, image: ImageId) -> dict[str, Any]:
        files = unpack(self._saved(image))
        (entry,) = json.loads(files["manifest.json"])
        raw = files[entry["Config"]]
        config = json.loads(raw)
        return {
            "Id": f"sha256:{hashlib.sha256(raw).hexdigest()}",
            "Size": len(self._saved(image)),
            "Created": config.get("created"),
            "Config": config["config"],
            "RootFS": {"Type": "layers", "Layers": config["rootfs"]["diff_ids"]},
        }

    def export(self, image: ImageId, target: Path, advance: Callable[[int], None]) -> None:
        saved = self._saved(image)
        target.write_bytes(saved)
        advance(len(saved))

    def load(self, archive: Path) -> None:
        """Keep the image, after the check that a real engine makes of each layer."""
        data = archive.read_bytes()
        files = unpack(data)
        (entry,) = json.loads(files["manifest.json"])
        diff_ids = json.loads(files[entry["Config"]])["rootfs"]["diff_ids"]
        layers = [hashlib.sha256(files[name]).hexdigest() for name in entry["Layers"]]
        assert [f"sha256:{digest}" for digest in layers] == diff_ids
        for name in entry["RepoTags"]:
            self.images[name] = data

    def push(self, image: ImageId, progress: Progress) -> None:
        self._saved(image)
        if self.registry_is_down:
            raise SourceUnavailable(f"the registry did not take {image}: connection refused")
        self.pushed.append(str(image))

    def layer(self, image: ImageId) -> bytes:
        """The only layer of an image that was loaded."""
        files = unpack(self._saved(image))
        (entry,) = json.loads(files["manifest.json"])
        (name,) = entry["Layers"]
        return files[name]

    def _saved(self, image: ImageId) -> bytes:
        try:
            return self.images[str(image)]
        except KeyError:
            raise ImageNotFound(f"no image {image}") from None


class Recorder:
    """A progress that keeps every step with its total and what was done of it."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.notes: list[str] = []
        self._lock = threading.Lock()

    def step(self, text: str, *, total_bytes: int = 0) -> None:
        self.steps.append((text, total_bytes, 0))

    def advance(self, count_bytes: int) -> None:
        with self._lock:
            text, total, done = self.steps[-1]
            self.steps[-1] = (text, total, done + count_bytes)

    def note(self, text: str) -> None:
        self.notes.append(text)

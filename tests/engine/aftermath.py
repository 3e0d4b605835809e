"""
What a node's plugin has left behind, seen from the host: layers, mounts, processes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.engine.world import Node

WHOLE = {
    "graphdriver": 1,
    "run-api": 2,
    "client": 1,
    "run-fuse": 1,
    "gear_plugin.confined.untar": 1,
    "gear_plugin.confined.check": 1,
}
"""
The processes of a plugin at rest.  The driver is gunicorn's master and its one
worker; the last two wait for a layer to unpack, and an index to check.
"""


@dataclass(frozen=True)
class Aftermath:
    """Looks at *node* anew each time it is asked."""

    node: Node

    def layers(self) -> set[str]:
        """The layers that the plugin has, those on their way out (`.tmp-`) too."""
        folder = self.node.inner_root / "containers"
        return {entry.name for entry in folder.iterdir() if entry.name != ".empty"}

    def known(self) -> set[str]:
        """
        The layers that dockerd has noted and will remove some day: of images, and
        of containers with their `-init`.  A build or a removal that was broken off
        leaves notes of a container that there is not.
        """
        base = self.node.engine.data_root / "image/gear/layerdb"
        # `<chain id>-<random>-removing`: dockerd goes on with it at its next start.
        files = [f for f in base.glob("sha256/*/cache-id") if f.parent.name.isalnum()]
        for container in self.node.engine.docker("ps", "-aq", "--no-trunc").stdout.split():
            files += [base / "mounts" / container / name for name in ("mount-id", "init-id")]
        return {file.read_text().strip() for file in files if file.exists()}

    def orphans(self) -> set[str]:
        """Layers that dockerd never noted, and so will never remove."""
        return self.layers() - self.known()

    def mounted(self) -> Counter[str]:
        """
        The layers that are mounted on the host, and how many overlays each: one
        overlay is there as often as dockerd has bound the plugin's folder to itself.
        """
        folder = self.node.inner_root / "containers"
        found = set()
        for line in _mountinfo("self"):
            _, _, device, _, text, *_ = line.split()
            point = Path(text)
            if point.name == "merged" and point.parent.parent == folder:
                found.add((point.parent.name, device))
        return Counter(layer for layer, _ in found)

    def private_mounts(self) -> list[str]:
        """The plugin's own mounts: indexes and views of images, by their mount points."""
        lines = _mountinfo(str(self.node.process("graphdriver")))
        points = [line.split()[4] for line in lines]
        return [
            point for point in points if point.startswith(("/run/gear/index", "/run/gear/view"))
        ]

    def probes(self) -> list[str]:
        """What attempts at mounting have left."""
        folder = self.node.inner_root / "probe"
        return [entry.name for entry in folder.iterdir()] if folder.exists() else []

    def processes(self) -> dict[str, int]:
        """How many processes of the plugin there are, by what they are."""
        own = self.node.plugin_id
        found: Counter[str] = Counter()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().decode().split("\0")
                    group = (entry / "cgroup").read_text()
                except OSError:
                    continue
                if own in group and words != [""]:
                    found[next((part for part in WHOLE if part in words), " ".join(words))] += 1
        return dict(found)


def overlays_on(upper: Path) -> int:
    """How many overlays, mounted anywhere on this machine, write to *upper*; 0 or 1 is right."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines = _mountinfo(entry.name)
            except OSError:
                continue
            ends = (
                f"containers/{upper.parent.name}/upper",
                f"containers/{upper.parent.name}/upper,",
            )
            for line in lines:
                options = line.rpartition(" ")[2].split(",")
                if any(o.startswith("upperdir=") and o.endswith(ends) for o in options):
                    found.add(line.split()[2])  # the superblock's device number
    return len(found)


def _mountinfo(process: str) -> list[str]:
    return Path(f"/proc/{process}/mountinfo").read_text().splitlines()

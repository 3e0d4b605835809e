"""
Where a node's files are, as this machine's user sees them.

A node that `gear graphdriver` runs uses the folders of the settings.  One
that a managed plugin runs has its main folder below docker's, and its sockets
and the store inside the plugin's own mounts, which only /proc shows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.jobs.engine_facts import EngineFacts, PluginFacts

_RUN_IN_PLUGIN = "run/gear"


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One node of this machine; `name` is for messages."""

    name: str
    root: Path
    run: Path | None
    """Sockets; None: its processes are not running, or cannot be seen."""
    inside: Path | None = None
    """What its own processes call `/`; None: the same as everybody."""

    def seen_from_outside(self, path: str) -> Path:
        """Where what its processes call *path* is."""
        return (self.inside or Path("/")) / path.lstrip("/")


def find_nodes(
    root: Path, run: Path, engine: EngineFacts | None, *, proc: Path = Path("/proc")
) -> list[NodePlace]:
    """The node of the settings *root* and *run*, and before it the plugin's in *engine*."""
    own = NodePlace("this machine", root, run)
    if engine is None or engine.plugin is None:
        return [own]
    plugin_root = engine.data_root / "plugins" / engine.plugin.id / "propagated-mount"
    # An engine of another machine says so too, but its folder is not here.
    # (Path.is_dir would raise where only root may look.)
    if not os.path.isdir(plugin_root):  # noqa: PTH112
        return [own]
    inside = _root_of(engine.plugin, proc)
    run_inside = inside / _RUN_IN_PLUGIN if inside else None
    name = f"plugin {engine.plugin.name}"
    return [NodePlace(name, plugin_root, run_inside, inside), own]


def _root_of(plugin: PluginFacts, proc: Path) -> Path | None:
    """The root folder of the plugin's processes, found by its id in their cgroup's name."""
    for entry in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            if plugin.id in (entry / "cgroup").read_text() and (entry / "root" / "run").is_dir():
                return entry / "root"
        except OSError:
            continue
    return None

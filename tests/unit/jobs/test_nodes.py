"""Where a node's folders are, seen from outside."""

from __future__ import annotations

from pathlib import Path

from gear_plugin.jobs.engine_facts import EngineFacts, PluginFacts
from gear_plugin.jobs.nodes import NodePlace, find_nodes

PLUGIN = PluginFacts("p" * 64, "gear:latest", True, {})


def engine(data_root: Path, plugin: PluginFacts | None = PLUGIN) -> EngineFacts:
    """An engine with Gear's plugin in it."""
    return EngineFacts("unix:///d.sock", "20.10", "1.41", True, "gear", {}, data_root, plugin)


def process(proc: Path, pid: int, cgroup: str) -> Path:
    """A process as /proc shows it; its root folder."""
    root = proc / str(pid) / "root"
    (root / "run").mkdir(parents=True)
    (proc / str(pid) / "cgroup").write_text(cgroup)
    return root


def test_without_a_plugin_the_settings_say_where(tmp_path: Path) -> None:
    """
    No engine, an engine without plugin, and an engine of another machine.
    """
    own = [NodePlace("this machine", tmp_path / "root", tmp_path / "run")]
    for facts in (None, engine(tmp_path, None), engine(tmp_path / "elsewhere")):
        assert find_nodes(tmp_path / "root", tmp_path / "run", facts) == own


def test_a_plugins_folders_are_found_through_its_processes(tmp_path: Path) -> None:
    """
    Its root below docker's, its sockets and store through /proc.
    """
    proc = tmp_path / "proc"
    process(proc, 7, "0::/user.slice\n")
    inside = process(proc, 23, f"1:name=systemd:/system.slice/{PLUGIN.id}\n0::/{PLUGIN.id}\n")
    (proc / "self").mkdir()
    (proc / "99").mkdir()  # ended meanwhile
    root = tmp_path / "docker" / "plugins" / PLUGIN.id / "propagated-mount"
    root.mkdir(parents=True)
    facts = engine(tmp_path / "docker")
    found, own = find_nodes(Path("/r"), Path("/run"), facts, proc=proc)
    assert (found.name, found.root) == ("plugin gear:latest", root)
    assert found.run == inside / "run/gear"
    assert found.seen_from_outside("/mnt/store") == inside / "mnt/store"
    assert own.seen_from_outside("/mnt/store") == Path("/mnt/store")


def test_a_plugin_that_does_not_run_has_no_sockets(tmp_path: Path) -> None:
    """
    But what it cached is still there to see.
    """
    root = tmp_path / "plugins" / PLUGIN.id / "propagated-mount"
    root.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    found, _ = find_nodes(Path("/r"), Path("/run"), engine(tmp_path), proc=tmp_path / "proc")
    assert (found.root, found.run, found.inside) == (root, None, None)

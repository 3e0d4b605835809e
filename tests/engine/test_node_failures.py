"""
What a node withstands: missing and wrong objects, daemons that die.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from tests.engine.conftest import Originals
from tests.engine.containers import pull, running, runs, tree
from tests.engine.storewatch import StoreWatch
from tests.engine.world import Gear, Node
from tests.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.root]


outliving = pytest.mark.parametrize("node", ["direct", "nested"], indirect=True, scope="session")
"""Where running containers outlive the FUSE daemon; in the way fuse-tree they end with it."""


def unread_file(node: Node, originals: Originals) -> tuple[str, str]:
    """A file of the `web` image whose object is not on the node: path and digest."""
    cached = node.cached()
    for path, seen in sorted(originals.scan("web").seen.items()):
        wanted = path.startswith((b"usr/share/perl5", b"usr/lib/python3.11"))
        if wanted and seen.content and seen.size and seen.content not in cached:
            return "/" + path.decode(), seen.content
    raise AssertionError("every file is cached already")


def exec_cat(
    node: Node, container: str, path: str, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Read a file inside the container; what it holds is thrown away."""
    words = ("exec", container, "sh", "-c", 'cat "$0" > /dev/null', path)
    return node.engine.docker(*words, check=check)


def test_a_missing_object_is_an_error_and_reads_once_it_is_back(
    node: Node, gear: Gear, pushed: dict[str, str], originals: Originals
) -> None:
    """
    EIO, not ENOENT, and soon; no hang, and no memory of the failure.
    """
    watch = StoreWatch(gear.store)
    node.forget_cache()
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        path, digest = unread_file(node, originals)
        kept = watch.path(digest)
        away = kept.with_name("away")
        kept.rename(away)
        try:
            begun = time.monotonic()
            failed = exec_cat(node, container, path, check=False)
            # Gear's own limit is 10 s; the rest is `docker exec` on a busy machine.
            assert time.monotonic() - begun < 30
        finally:
            away.rename(kept)
        assert failed.returncode != 0
        assert "Input/output error" in failed.stderr
        exec_cat(node, container, path)


def test_wrong_bytes_in_the_store_never_reach_a_container(
    node: Node, gear: Gear, pushed: dict[str, str], originals: Originals
) -> None:
    """
    An object that does not hash to its name is refused.
    """
    watch = StoreWatch(gear.store)
    node.forget_cache()
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        path, digest = unread_file(node, originals)
        kept = watch.path(digest)
        away = kept.parent.parent / "away"
        kept.rename(away)
        try:
            (kept.parent / digest[3:]).write_bytes(b"not what it claims to be")
            failed = exec_cat(node, container, path, check=False)
        finally:
            (kept.parent / digest[3:]).unlink()
            away.rename(kept)
        assert "Input/output error" in failed.stderr
        exec_cat(node, container, path)


@outliving
def test_a_running_container_survives_the_fuse_daemon_and_heals(
    node: Node, pushed: dict[str, str], originals: Originals
) -> None:
    """
    kill -9: cached files read at once, others after the supervisor has healed it.
    """
    node.forget_cache()
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        node.engine.docker("exec", container, "python3", "-c", "import json")
        path, _ = unread_file(node, originals)
        killed = node.fuse_pid()
        os.kill(killed, signal.SIGKILL)
        node.engine.docker("exec", container, "python3", "-c", "import json")

        def reads() -> bool:
            return exec_cat(node, container, path, check=False).returncode == 0

        eventually(reads, timeout_s=120, what="healing")


def test_new_containers_run_once_a_killed_fuse_daemon_is_back(
    node: Node, pushed: dict[str, str], originals: Originals
) -> None:
    """
    Also of an image that was in use, and of files that nobody has read yet.
    """
    node.forget_cache()
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]):
        killed = node.fuse_pid()
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: node.fuse_pid() not in (0, killed), what="a new FUSE daemon")
        eventually(lambda: runs(node, pushed["web"]), what="a new container")
        path, _ = unread_file(node, originals)
        with running(node.engine, pushed["web"]) as container:
            exec_cat(node, container, path)
    with running(node.engine, pushed["web"]) as container:
        node.engine.docker("exec", container, "python3", "-c", "import json")


@outliving
def test_the_plugin_can_be_killed_under_a_running_container(
    node: Node, pushed: dict[str, str]
) -> None:
    """
    The engine starts the plugin again, without Init; mounts and counts are found.
    """
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        node.engine.docker("exec", container, "python3", "-c", "import json")
        cached = tree(node.engine, container) / "usr/lib/python3.11/json/__init__.py"
        content = cached.read_bytes()
        node.kill_plugin()
        # Not with `docker exec`, which asks the plugin first.
        assert cached.read_bytes() == content
        eventually(lambda: runs(node, pushed["web"]), what="a new plugin process")
        node.engine.docker("exec", container, "python3", "-c", "import json")
    assert not (node.inner_root / "containers" / container / "merged").exists()


def test_new_containers_run_once_a_killed_plugin_is_back(
    node: Node, pushed: dict[str, str]
) -> None:
    """
    And the container that lost its plugin can be removed.
    """
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        killed = node.kill_plugin()
        eventually(lambda: node.process("graphdriver") not in (0, killed), what="a new process")
        eventually(lambda: runs(node, pushed["web"]), what="a new container")
    assert node.engine.docker("ps", "-aq", "--no-trunc", "-f", f"id={container}").stdout == ""


def test_a_damaged_index_is_refused_with_a_reason(node: Node, tmp_path: Path) -> None:
    """
    docker shows the reason, and nothing is left behind.
    """
    (tmp_path / ".gear").mkdir()
    (tmp_path / ".gear/index.erofs").write_bytes(b"\0" * 8192)
    (tmp_path / ".gear/manifest").write_bytes(b"no manifest")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / ".gear", ".gear")
    failed = node.engine.docker("import", str(tmp_path / "x.tar"), "bad:1", check=False)
    assert failed.returncode != 0
    assert "manifest" in failed.stderr

"""
The main job: real engines, a real registry, the plugin installed from it.

Engine A (overlay2) builds and pushes; engine B runs on the plugin, once for
each way of mounting.  What a container sees is compared with A's container of
the original image, by code that knows nothing of Gear.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.compare import differences
from tests.engine.engine import Engine
from tests.engine.filetrace import OpenTrace
from tests.engine.storewatch import StoreWatch
from tests.engine.world import Gear, Node, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.root]

DOCKERS_OWN = {
    "proc",
    "sys",
    "dev",
    ".dockerenv",
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/mtab",
}
"""What dockerd and runc put into every container; they change the time of `etc` and of volumes."""

SERVE = (
    "import urllib.request,time\n"
    "for _ in range(100):\n"
    "    try: print(urllib.request.urlopen('http://127.0.0.1:8000/').read().decode()); break\n"
    "    except OSError: time.sleep(0.2)\n"
)
SUM = "import numpy, scipy.linalg; print(scipy.linalg.det(numpy.eye(3)))"


@contextmanager
def running(engine: Engine, ref: str, *command: str) -> Iterator[str]:
    """A container of *ref* that runs *command*, or waits; removed at the end."""
    entry = ("--entrypoint", command[0]) if command else ("--entrypoint", "sleep")
    rest = command[1:] if command else ("600",)
    words = ("run", "-d", "--network", "none", "--user", "0", *entry, ref, *rest)
    name = engine.docker(*words).stdout.strip()
    try:
        yield name
    finally:
        engine.docker("rm", "-f", name)


def tree(engine: Engine, container: str) -> Path:
    """The container's root filesystem, as its own processes see it."""
    return Path(f"/proc/{engine.container_pid(container)}/root")


def original(pushed: dict[str, str], name: str) -> str:
    """The reference of the image that *name* was built from."""
    return pushed[name].replace("-gear:", ":")


def pull(node: Node, ref: str) -> None:
    node.engine.docker("pull", ref)


def test_the_engine_runs_on_the_plugin(node: Node) -> None:
    """
    `docker info` says so, how Gear images are mounted, and what was set at the installation.
    """
    info = json.loads(node.engine.docker("info", "-f", "{{json .}}").stdout)
    status = dict(info["DriverStatus"])
    assert info["Driver"] == "gear"
    assert status["Mount Way"].split()[0] == node.way
    assert status["Cache Limit"] == str(20 * 2**30)
    assert status["Object Store"] == "/mnt/store"


@pytest.mark.parametrize("name", ["web", "nginx", "scipy"])
def test_the_gear_image_has_the_originals_configuration(
    gear: Gear, pushed: dict[str, str], name: str
) -> None:
    """
    Env, Cmd, Entrypoint, User, Volumes, Labels, Healthcheck: everything.
    """

    def config(ref: str) -> object:
        return json.loads(gear.engine.docker("image", "inspect", ref).stdout)[0]["Config"]

    assert config(pushed[name]) == config(original(pushed, name))


def test_building_and_pushing_again_changes_nothing(gear: Gear, pushed: dict[str, str]) -> None:
    """
    The same image gives the same index; every object is there already.
    """

    def image_id() -> str:
        return gear.engine.docker("image", "inspect", pushed["web"], "-f", "{{.Id}}").stdout

    before, objects = image_id(), StoreWatch(gear.store).everything()
    gear("build", original(pushed, "web"))
    gear("push", pushed["web"])
    assert image_id() == before
    assert StoreWatch(gear.store).everything() == objects


@pytest.mark.parametrize("name", ["web", "nginx", "scipy"])
def test_pull_reads_no_object_and_a_task_only_what_it_opens(
    node: Node, gear: Gear, pushed: dict[str, str], name: str
) -> None:
    """
    Asserted at the store: what was read is the content of files that were opened.
    """
    tasks = {
        "web": ["python3", "-c", "import flask; print('ok')"],
        "nginx": ["nginx", "-t"],
        "scipy": ["python3", "-c", SUM],
    }
    node.forget_cache()
    watch = StoreWatch(gear.store)
    pull(node, pushed[name])
    assert watch.read() == set()
    with running(node.engine, pushed[name]) as container:
        wait_until(watch.read, what="the first open")
        started = watch.read()
        watch.reset()
        merged = node.inner_root / "containers" / mount_id(node, container) / "merged"
        with OpenTrace(merged) as trace:
            done = node.engine.docker("exec", container, *tasks[name])
        assert done.returncode == 0
        opened = {content_of(tree(node.engine, container), path) for path in trace.paths()}
        fetched = watch.read()
    assert fetched
    assert fetched <= opened
    assert len(started | fetched) < len(watch.everything())


def mount_id(node: Node, container: str) -> str:
    """The graph id of a container's layer."""
    data = json.loads(node.engine.docker("inspect", container).stdout)[0]["GraphDriver"]["Data"]
    return Path(data["MergedDir"]).parent.name


def content_of(root: Path, path: str) -> str:
    """The sha256 of a file inside a container; empty for what is no regular file."""
    file = root / path.lstrip("/")
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


@pytest.mark.parametrize("name", ["web", "nginx", "scipy"])
def test_every_file_is_the_originals(
    node: Node, engine_a: Engine, pushed: dict[str, str], name: str
) -> None:
    """
    Content and all metadata, read through the two containers.
    """
    pull(node, pushed[name])
    with (
        running(engine_a, original(pushed, name)) as theirs,
        running(node.engine, pushed[name]) as ours,
    ):
        found = differences(
            tree(engine_a, theirs), tree(node.engine, ours), ignore=DOCKERS_OWN | {""}
        )
    touched = ("b'etc': mtime_ns", "b'data': mtime_ns")
    assert [line for line in found if not line.startswith(touched)] == []


def test_a_web_server_serves(node: Node, pushed: dict[str, str]) -> None:
    """
    The image's own command, as its users start it.
    """
    pull(node, pushed["web"])
    words = ("run", "-d", "--network", "none", pushed["web"])
    container = node.engine.docker(*words).stdout.strip()
    try:
        answer = node.engine.docker("exec", container, "python3", "-c", SERVE).stdout
    finally:
        node.engine.docker("rm", "-f", container)
    assert answer.strip()


def test_numpy_and_scipy_compute(node: Node, pushed: dict[str, str]) -> None:
    """
    Large shared libraries, loaded by mmap.
    """
    pull(node, pushed["scipy"])
    words = ("run", "--rm", "--network", "none", "--entrypoint", "python3", pushed["scipy"])
    assert float(node.engine.docker(*words, "-c", SUM).stdout) == 1.0


def test_a_second_container_reads_nothing_and_a_second_image_only_what_is_new(
    node: Node, gear: Gear, pushed: dict[str, str]
) -> None:
    """
    Objects are shared by content, whatever image brought them.
    """
    task = ("python3", "-c", "import flask, app; print('ok')")
    watch = StoreWatch(gear.store)
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        node.engine.docker("exec", container, *task)
    watch.reset()
    with running(node.engine, pushed["web"]) as container:
        node.engine.docker("exec", container, *task)
    assert watch.read() == set()
    known = node.cached()
    pull(node, pushed["web2"])
    with running(node.engine, pushed["web2"]) as container:
        node.engine.docker("exec", container, *task)
    read = watch.read()
    assert read
    assert not read & known
    assert len(read) < 10


def unread_file(node: Node, container: str) -> tuple[str, str]:
    """A file of a running container whose object is not on the node: path and digest."""
    cached = node.cached()
    for path, digest in sorted(_CONTENTS.items()):
        if path.startswith(("usr/share", "usr/lib/python3.11")) and digest not in cached:
            return "/" + path, digest
    raise AssertionError("every file is cached already")


_CONTENTS: dict[str, str] = {}


@pytest.fixture
def web_contents(engine_a: Engine, pushed: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Every regular file of the `web` image by path, hashed from engine A's export."""
    if not _CONTENTS:
        words = ("create", "--entrypoint", "true", original(pushed, "web"))
        container = engine_a.docker(*words).stdout.strip()
        engine_a.docker("export", "-o", str(tmp_path / "x.tar"), container)
        engine_a.docker("rm", container)
        with tarfile.open(tmp_path / "x.tar") as archive:
            for member in archive:
                if (
                    member.isreg()
                    and member.size
                    and (data := archive.extractfile(member)) is not None
                ):
                    _CONTENTS[member.name] = hashlib.sha256(data.read()).hexdigest()
    return _CONTENTS


def exec_cat(
    node: Node, container: str, path: str, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Read a file inside the container; what it holds is thrown away."""
    words = ("exec", container, "sh", "-c", 'cat "$0" > /dev/null', path)
    return node.engine.docker(*words, check=check)


def test_a_missing_object_is_an_error_and_reads_once_it_is_back(
    node: Node, gear: Gear, pushed: dict[str, str], web_contents: dict[str, str]
) -> None:
    """
    EIO, not ENOENT, and soon; no hang, and no memory of the failure.
    """
    watch = StoreWatch(gear.store)
    node.forget_cache()
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        path, digest = unread_file(node, container)
        kept = watch.path(digest)
        away = kept.with_name("away")
        kept.rename(away)
        try:
            begun = time.monotonic()
            failed = exec_cat(node, container, path, check=False)
            assert time.monotonic() - begun < 10
        finally:
            away.rename(kept)
        assert failed.returncode != 0
        assert "Input/output error" in failed.stderr
        exec_cat(node, container, path)


def test_wrong_bytes_in_the_store_never_reach_a_container(
    node: Node, gear: Gear, pushed: dict[str, str], web_contents: dict[str, str]
) -> None:
    """
    An object that does not hash to its name is refused.
    """
    watch = StoreWatch(gear.store)
    node.forget_cache()
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        path, digest = unread_file(node, container)
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


def test_a_running_container_survives_the_fuse_daemon_and_heals(
    node: Node, pushed: dict[str, str], web_contents: dict[str, str]
) -> None:
    """
    kill -9: cached files read at once, others after the supervisor has healed it.
    """
    node.forget_cache()
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        node.engine.docker("exec", container, "python3", "-c", "import json")
        path, _ = unread_file(node, container)
        killed = node.fuse_pid()
        os.kill(killed, signal.SIGKILL)
        node.engine.docker("exec", container, "python3", "-c", "import json")

        def reads() -> bool:
            return exec_cat(node, container, path, check=False).returncode == 0

        wait_until(reads, timeout_s=60, what="healing")
        wait_until(lambda: node.fuse_pid() not in (0, killed), what="a new FUSE daemon")
    with running(node.engine, pushed["web"]) as container:
        node.engine.docker("exec", container, "python3", "-c", "import json")


def test_the_plugin_can_be_killed_under_a_running_container(
    node: Node, pushed: dict[str, str]
) -> None:
    """
    The engine starts the plugin again, without Init; mounts and counts are found.
    """
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        node.engine.docker("exec", container, "python3", "-c", "import json")
        inside = tree(node.engine, container)
        os.kill(node.process("graphdriver"), signal.SIGKILL)
        # Not with `docker exec`, which asks the plugin first.
        assert (inside / "usr/lib/python3.11/json/__init__.py").read_bytes()
        wait_until(lambda: runs(node, pushed["web"]), timeout_s=60, what="a new plugin process")
        node.engine.docker("exec", container, "python3", "-c", "import json")
    assert not (node.inner_root / "containers" / container / "merged").exists()


def runs(node: Node, ref: str) -> bool:
    """Whether a new container can be run."""
    words = ("run", "--rm", "--network", "none", "--entrypoint", "true", ref)
    return node.engine.docker(*words, check=False).returncode == 0


def test_push_and_save_give_back_the_layer_as_it_was_pulled(
    node: Node, gear: Gear, pushed: dict[str, str], tmp_path: Path
) -> None:
    """
    docker reads it through the mount; the digests are engine A's.
    """
    pull(node, pushed["web"])

    def layer(engine: Engine, ref: str) -> str:
        return engine.docker("image", "inspect", ref, "-f", "{{json .RootFS.Layers}}").stdout

    assert layer(node.engine, pushed["web"]) == layer(gear.engine, pushed["web"])
    node.engine.docker("save", "-o", str(tmp_path / "saved.tar"), pushed["web"])
    with tarfile.open(tmp_path / "saved.tar") as archive:
        inner = next(name for name in archive.getnames() if name.endswith("layer.tar"))
        data = archive.extractfile(inner)
        assert data is not None
        saved = hashlib.sha256(data.read()).hexdigest()
    assert json.loads(layer(node.engine, pushed["web"])) == [f"sha256:{saved}"]

    again = pushed["web"].replace("web-gear", f"again-{time.time_ns()}")
    node.engine.docker("tag", pushed["web"], again)
    node.engine.docker("push", again)
    gear.engine.docker("pull", again)
    assert layer(gear.engine, again) == layer(gear.engine, pushed["web"])
    node.engine.docker("rmi", again)


def test_images_can_be_built_and_committed_on_a_gear_image(
    node: Node, pushed: dict[str, str], tmp_path: Path
) -> None:
    """
    Ordinary layers above an index layer, read back without losing a byte.
    """
    pull(node, pushed["web"])
    (tmp_path / "Dockerfile").write_text(
        f"FROM {pushed['web']}\nUSER 0\nCOPY note /note\n"
        "RUN chmod 600 /etc/issue && rm -r /usr/share/doc && mv /etc/apt /etc/moved\n"
    )
    (tmp_path / "note").write_text("a note\n")
    node.engine.docker("build", "-t", "derived:1", "--network", "none", str(tmp_path))
    script = (
        "cat /note /etc/issue; ls /usr/share/doc /etc/apt; ls /etc/moved; stat -c %a /etc/issue"
    )
    words = ("--network", "none", "--entrypoint", "sh")
    ran = node.engine.docker("run", "--rm", *words, "derived:1", "-c", script, check=False)
    assert ran.stdout.startswith("a note\nDebian GNU/Linux 12")
    assert ran.stdout.rstrip().endswith("600")
    assert ran.stderr.count("No such file") == 2
    node.engine.docker(
        "run", "--name", "work", *words, "derived:1", "-c", "echo more >> /etc/issue"
    )
    assert "C /etc/issue" in node.engine.docker("diff", "work").stdout
    node.engine.docker("commit", "work", "committed:1")
    node.engine.docker("rm", "work")
    shown = node.engine.docker("run", "--rm", *words, "committed:1", "-c", "cat /etc/issue").stdout
    assert shown.rstrip().endswith("more")
    node.engine.docker("rmi", "committed:1", "derived:1")


def test_removing_an_image_leaves_nothing_of_it(node: Node, pushed: dict[str, str]) -> None:
    """
    Its index, its private folder and its mounts go; shared objects stay.
    """
    pull(node, pushed["nginx"])
    index = node.image(pushed["nginx"])
    assert runs(node, pushed["nginx"])
    cached = node.cached()
    node.engine.docker("rmi", pushed["nginx"])
    assert not (node.inner_root / "images" / index).exists()
    wait_until(lambda: not (node.inner_root / "private" / index).exists(), what="forgetting")
    assert node.cached() == cached


def test_a_restarted_engine_finds_everything(node: Node, pushed: dict[str, str]) -> None:
    """
    dockerd stops and starts again: images are there and run.
    """
    pull(node, pushed["web"])
    node.engine.restart("gear")
    assert runs(node, pushed["web"])


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

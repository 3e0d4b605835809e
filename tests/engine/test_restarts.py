"""
Everything restarted under running containers: the plugin, its engine, both.

One container of an ordinary image and one of a Gear image each time.  They run
on where they can, and whatever was restarted, afterwards the counts are right:
stopping and removing them leaves no mount, no layer and no process.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.engine import small_images
from tests.engine.aftermath import WHOLE, Aftermath, overlays_on
from tests.engine.conftest import WORK
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.small_images import SmallImages
from tests.engine.world import Gear, Node, install
from tests.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.root]

IN_USE = "in use by a container that has been running since before the plugin was disabled"


@pytest.fixture(scope="module")
def small(gear: Gear, registry: Registry) -> SmallImages:
    return small_images.make(gear, registry, "restarts", seed=1)


@pytest.fixture(scope="module")
def node(gear: Gear, registry: Registry, plugin_ref: str, small: SmallImages) -> Iterator[Node]:
    """An engine of its own, with live-restore; the images' `/cached` files are on it."""
    engine = Engine("r", WORK / "r", env=registry.client_environ, live_restore=True)
    engine.remove()
    try:
        engine.start("overlay2")
        install(engine, plugin_ref, gear.store)
        engine.restart("gear")
        node = Node(engine, gear.store)
        small.warm(node)
        yield node
    finally:
        engine.remove()


@dataclass(frozen=True)
class Container:
    """A running container, and what it was when it started."""

    node: Node
    name: str
    process: int
    layer: Path
    """Its folder below the plugin's `containers/`."""

    def reads(self, sums: str) -> bool:
        """Whether every file that *sums* lists reads right, asked inside the container."""
        return self.exec("sha256sum", "-c", "-s", sums).returncode == 0

    def exec(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.node.engine.docker("exec", self.name, *words, check=False)

    def runs_on(self) -> bool:
        """Whether it is the same process as at the start."""
        return self.node.engine.container_pid(self.name) == self.process

    def mounted(self) -> int:
        """How many overlays there are on the host for its files."""
        return Aftermath(self.node).mounted()[self.layer.name]


@pytest.fixture
def containers(node: Node, small: SmallImages) -> Iterator[list[Container]]:
    """One container of each image; at the end they are removed, and nothing is left of them."""
    after = Aftermath(node)
    before = after.layers()
    started = [_start(node, ref) for ref in small.both]
    yield started
    node.engine.docker("rm", "-f", *(container.name for container in started))
    assert after.layers() == before == after.known()
    assert after.mounted() == {}
    assert after.probes() == []
    eventually(lambda: after.processes() == WHOLE, what="all processes, and no others")
    assert len(after.private_mounts()) <= 2  # the one Gear image's


def _start(node: Node, ref: str) -> Container:
    docker = node.engine.docker
    words = ("run", "-d", "--network", "none", "--stop-timeout", "1", ref, "sleep", "900")
    name = docker(*words).stdout.strip()
    data = json.loads(docker("inspect", name).stdout)[0]["GraphDriver"]["Data"]
    folder = node.inner_root / "containers" / Path(data["MergedDir"]).parent.name
    container = Container(node, name, node.engine.container_pid(name), folder)
    assert container.exec("sh", "-c", "echo mine > /written").returncode == 0
    return container


def go_on(containers: list[Container]) -> None:
    """Each runs on, and docker can do with it what it could before."""
    for container in containers:
        assert container.runs_on()
        assert container.reads("/cached.sums")
        assert container.exec("cat", "/written").stdout == "mine\n"
        assert overlays_on(container.layer / "upper") == 1


def used_from_outside(container: Container, tmp_path: Path) -> None:
    """Copied in and out: Get and Put besides the container's own."""
    docker = container.node.engine.docker
    (tmp_path / "in").write_text("from outside")
    docker("cp", str(tmp_path / "in"), f"{container.name}:/copied")
    assert container.exec("cat", "/copied").stdout == "from outside"
    docker("cp", f"{container.name}:/written", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine\n"


def started_anew(containers: list[Container]) -> None:
    """Stopped, which unmounts; started again with all they have written; mounted once."""
    for container in containers:
        container.node.engine.docker("stop", "-t", "0", container.name)
        assert container.mounted() == 0
        container.node.engine.docker("start", container.name)
        assert container.exec("cat", "/written").stdout == "mine\n"
        assert container.reads("/cached.sums")
        assert container.mounted() == 1
        assert overlays_on(container.layer / "upper") == 1
        container.node.engine.docker("stop", "-t", "0", container.name)
        assert container.mounted() == 0


def _name(step: object) -> str:
    return str(getattr(step, "__name__", step))


def kill_plugin(node: Node) -> None:
    killed = node.kill_plugin()
    eventually(lambda: node.process("graphdriver") not in (0, killed), what="a new plugin")
    eventually(lambda: node.process("run-api"), what="a new driver")


def restart_engine(node: Node) -> None:
    node.engine.end()
    node.engine.start_again("gear")


def kill_engine(node: Node) -> None:
    node.engine.kill()
    node.engine.start_again("gear")


def kill_both(node: Node) -> None:
    node.engine.kill()
    node.kill_plugin()
    node.engine.start_again("gear")


@pytest.mark.parametrize("restart", [kill_plugin, restart_engine, kill_engine], ids=_name)
def test_containers_run_on(
    containers: list[Container], node: Node, restart: Callable[[Node], None], tmp_path: Path
) -> None:
    """
    With live-restore neither plugin nor engine takes a container along, and
    one Put more than there were Gets would show.
    """
    restart(node)
    eventually(lambda: all(c.reads("/cached.sums") for c in containers), what="docker exec")
    go_on(containers)
    for container in containers:
        used_from_outside(container, tmp_path)
        assert container.mounted() == 1
        assert container.reads("/late.sums")
    started_anew(containers)


def disable_and_enable(node: Node, _: str) -> None:
    node.engine.docker("plugin", "disable", "-f", "gear")
    node.engine.docker("plugin", "enable", "gear")


def upgrade(node: Node, ref: str) -> None:
    docker = node.engine.docker
    docker("plugin", "disable", "-f", "gear")
    words = ("plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", "gear", ref)
    docker(*words)
    docker("plugin", "enable", "gear")


@pytest.mark.parametrize(
    "step", [pytest.param(disable_and_enable, marks=pytest.mark.full), upgrade], ids=_name
)
def test_a_disabled_plugin_mounts_no_container_a_second_time(
    containers: list[Container],
    node: Node,
    plugin_ref: str,
    step: Callable[[Node, str], None],
    tmp_path: Path,
) -> None:
    """
    dockerd unmounts all of the plugin's mounts; the containers keep theirs.
    What would need a second one is refused in one line until they are restarted.
    """
    step(node, plugin_ref)
    assert [container.mounted() for container in containers] == [0, 0]
    docker = node.engine.docker
    go_on(containers)
    plain, lazy = containers
    for words in (
        ("cp", f"{plain.name}:/written", str(tmp_path / "out")),
        ("commit", lazy.name, "restarts:never"),
    ):
        refused = docker(*words, check=False)
        assert refused.returncode != 0
        assert IN_USE in refused.stderr
        assert refused.stderr.count("\n") == 1
    for container in containers:
        eventually(partial(container.reads, "/late.sums"), "healing")
        assert "A /written" in docker("diff", container.name).stdout
    go_on(containers)
    assert [container.mounted() for container in containers] == [0, 0]
    started_anew(containers)
    for container in containers:
        docker("start", container.name)
        used_from_outside(container, tmp_path)


@pytest.mark.parametrize(
    "restarts",
    [(restart_engine, kill_engine), pytest.param((kill_both,), marks=pytest.mark.full)],
    ids=["engine", "both"],
)
def test_containers_that_end_with_their_engine_start_again(
    containers: list[Container], node: Node, restarts: tuple[Callable[[Node], None], ...]
) -> None:
    """
    Without live-restore: dockerd ends them, or finds them and ends them then.
    """
    docker = node.engine.docker
    node.engine.live_restore = False
    try:
        restart_engine(node)  # so that this dockerd is one without
        for restart in restarts:
            docker("start", *(container.name for container in containers))
            restart(node)
            assert docker("ps", "-q").stdout == ""
            assert [container.mounted() for container in containers] == [0, 0]
    finally:
        node.engine.live_restore = True
    for container in containers:
        docker("start", container.name)
        assert container.reads("/late.sums")
    started_anew(containers)
    restart_engine(node)

"""
Gear images as volumes: the plugin is installed, and containers run on overlay2
(`host`) or on Gear itself (`node`).
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine import images
from tests.engine.compare import differences, scan
from tests.engine.conftest import WORK, Originals
from tests.engine.containers import DOCKERS_OWN, original, pull, touched, tree, unexpected
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.storewatch import StoreWatch
from tests.engine.world import Gear, Node, install
from tests.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.root]

JSON = "usr/lib/python3.11/json/__init__.py"
"""A file of the `web` image, in the volume."""


@pytest.fixture(scope="module")
def host(plugin_ref: str, registry: Registry, gear: Gear, pushed: dict[str, str]) -> Iterator[Node]:
    """An engine on overlay2 that has the plugin, and one small image to run."""
    engine = Engine("v", WORK / "v", env=registry.client_environ)
    engine.remove()  # what a crashed predecessor left
    try:
        engine.start("overlay2")
        install(engine, plugin_ref, gear.store, "start_profiles=false")
        engine.docker("tag", images.ensure(engine, "tiny"), "tiny:1")
        yield Node(engine, gear.store)
    finally:
        engine.remove()


@pytest.fixture
def volume(host: Node) -> Iterator[str]:
    """A volume's name; the volume goes at the end, and nothing of it is left."""
    name = f"v{os.urandom(4).hex()}"
    yield name
    host.engine.docker("volume", "rm", "-f", name)
    assert not (host.inner_root / "volumes" / name).exists()


def create(node: Node, name: str, *options: str) -> None:
    words = [word for option in options for word in ("-o", option)]
    node.engine.docker("volume", "create", "-d", "gear", *words, name)


def refused(node: Node, *words: str) -> str:
    """What docker says, in one line."""
    done = node.engine.docker(*words, check=False)
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def sh(node: Node, mount: str, script: str, *options: str) -> str:
    """What a shell prints in a container of its own, with the volume *mount*."""
    words = ("run", "--rm", "--network", "none", "-v", mount, *options, "tiny:1")
    return node.engine.docker(*words, "sh", "-c", script).stdout


@contextmanager
def holding(node: Node, *mounts: str) -> Iterator[str]:
    """A container that waits, with the volumes *mounts*."""
    options = [word for mount in mounts for word in ("-v", mount)]
    words = ("run", "-d", "--network", "none", *options, "tiny:1", "sleep", "900")
    name = node.engine.docker(*words).stdout.strip()
    try:
        yield name
    finally:
        node.engine.docker("rm", "-f", name)


def mounted(node: Node, name: str) -> bool:
    """Whether the volume is mounted, as the host sees it."""
    point = str(node.inner_root / "volumes" / name / "merged")
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == point for line in lines)


def have_plugin(node: Node) -> None:
    """
    Enable the plugin if dockerd has given it up: at its own start it waits 12 s
    for the socket, which a busy machine may need longer to bring about.
    """
    enabled = ("plugin", "inspect", "gear", "-f", "{{.Enabled}}")
    if node.engine.docker(*enabled).stdout.strip() != "true":
        node.engine.docker("plugin", "enable", "gear")


def call(node: Node, name: str, **message: str) -> tuple[int, dict[str, object]]:
    """One call of the plugin, as docker makes it."""
    connection = http.client.HTTPConnection("plugin")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(node.plugin_socket))
    connection.request("POST", f"/VolumeDriver.{name}", json.dumps(message))
    answer = connection.getresponse()
    found: dict[str, object] = json.loads(answer.read())
    connection.close()
    return answer.status, found


def test_a_volume_is_made_listed_shown_and_removed(
    host: Node, pushed: dict[str, str], volume: str
) -> None:
    """
    Its image comes from the registry, and goes with it.
    """
    create(host, volume, f"image={pushed['web']}", "path=/usr/lib")
    listed = host.engine.docker("volume", "ls", "--format", "{{.Driver}} {{.Name}}").stdout
    assert f"gear:latest {volume}" in listed.splitlines()
    shown = json.loads(host.engine.docker("volume", "inspect", volume).stdout)[0]
    assert shown["Status"]["Image"] == pushed["web"]
    assert (shown["Status"]["Mode"], shown["Status"]["Path"]) == ("ro", "/usr/lib")
    index = shown["Status"]["Index"].removeprefix("sha256:")
    assert (host.inner_root / "images" / index).is_dir()
    host.engine.docker("volume", "rm", volume)
    assert volume not in host.engine.docker("volume", "ls", "-q").stdout.split()
    assert not (host.inner_root / "images" / index).exists()
    eventually(lambda: not (host.inner_root / "private" / index).exists(), what="forgetting")


def test_files_are_fetched_when_they_are_opened(
    host: Node, gear: Gear, pushed: dict[str, str], originals: Originals, volume: str
) -> None:
    """
    Listing all of the image reads nothing from the store, reading a file this one.
    """
    watch = StoreWatch(gear.store)
    create(host, volume, f"image={pushed['web']}")
    found = sh(host, f"{volume}:/v", "find /v | wc -l; find /v -type f -exec ls -ln {} + | wc -l")
    assert int(found.split()[0]) > 5000
    assert watch.read() == set()
    seen = originals.scan("web").seen[JSON.encode()]
    assert sh(host, f"{volume}:/v", f"sha256sum < /v/{JSON}").split()[0] == seen.content
    assert watch.read() == {seen.content}


def test_a_volume_holds_what_the_image_holds(
    host: Node, engine_a: Engine, pushed: dict[str, str], originals: Originals, volume: str
) -> None:
    """
    Compared bit for bit with a container of the original image on overlay2.
    """
    ref = original(pushed, "web")
    create(host, volume, f"image={ref}")
    with holding(host, f"{volume}:/v") as container:
        ours = scan(tree(host.engine, container) / "v", DOCKERS_OWN)
    found = unexpected(differences(originals.scan("web"), ours), engine_a, ref)
    # docker makes what the image says is a volume.
    made = [f"only in the first: {path.encode()!r}" for path in touched(engine_a, ref)]
    assert [line for line in found if line not in made] == []


def test_a_read_only_volume_cannot_be_written(
    host: Node, pushed: dict[str, str], volume: str
) -> None:
    """
    Whoever tries, and whatever the container's own mount says.
    """
    create(host, volume, f"image={pushed['web']}", "mode=ro")
    script = "touch /v/new 2>&1; rm /v/etc/issue 2>&1; mount -o remount,rw /v 2>&1; touch /v/x 2>&1"
    said = sh(host, f"{volume}:/v", f"{script}; true", "--cap-add", "SYS_ADMIN")
    assert said.count("Read-only file system") >= 3, said


def test_a_writable_volume_is_shared_by_its_containers_and_no_others(
    host: Node, pushed: dict[str, str], volume: str
) -> None:
    """
    Two containers see each other's files; another volume of the image does not; it lasts.
    """
    create(host, volume, f"image={pushed['web']}", "mode=rw")
    other = f"{volume}-other"
    create(host, other, f"image={pushed['web']}", "mode=rw")
    try:
        with holding(host, f"{volume}:/v") as one, holding(host, f"{volume}:/w") as two:
            execute = ("exec", one, "sh", "-c")
            host.engine.docker(*execute, "echo from one > /v/srv/note; rm /v/etc/issue")
            assert host.engine.docker("exec", two, "cat", "/w/srv/note").stdout == "from one\n"
            assert sh(host, f"{other}:/v", "cat /v/etc/issue; ls /v/srv") != ""
            assert "note" not in sh(host, f"{other}:/v", "ls /v/srv")
        assert not mounted(host, volume)
        assert sh(host, f"{volume}:/v", "cat /v/srv/note; ls /v/etc/issue; true") == "from one\n"
    finally:
        host.engine.docker("volume", "rm", other)


def test_a_folder_of_an_image_is_shown(host: Node, pushed: dict[str, str], volume: str) -> None:
    """
    `/bin` is a link to `usr/bin`; made by `docker run` itself.
    """
    mount = f"type=volume,source={volume},target=/v,volume-driver=gear"
    mount += f",volume-opt=image={pushed['web']},volume-opt=path=/bin,volume-opt=mode=rw"
    words = ("run", "--rm", "--network", "none", "--mount", mount, "tiny:1")
    shown = host.engine.docker(*words, "sh", "-c", "ls /v; echo x > /v/new").stdout.split()
    assert {"python3.11", "bash"} <= set(shown)
    listed = sh(host, f"{volume}:/v", "cat /v/new; ls /v | wc -l").split()
    assert listed == ["x", str(len(shown) + 1)]


def test_an_ordinary_volume_gets_what_the_image_has_there(host: Node, volume: str) -> None:
    """
    docker copies it in when the volume is empty, as with its own driver; data stays.
    """
    create(host, volume)
    assert "busybox" in sh(host, f"{volume}:/bin", "echo mine > /bin/mine; ls /bin").split()
    listed = sh(host, f"{volume}:/v", "ls /v; cat /v/mine").split()
    assert listed[-1] == "mine"
    assert "busybox" in listed
    unnamed = ("--mount", "type=volume,target=/u,volume-driver=gear")
    assert sh(host, f"{volume}:/v", "touch /u/x; ls /u", *unnamed) == "x\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["imgae=app"], "unknown volume option 'imgae'; known: image, mode, path"),
        (["mode=rw"], "a volume with options needs image=NAME[:TAG]"),
        (["image={web}", "mode=rx"], "volume option mode: ro or rw, not 'rx'"),
        (["image={web}", "path=usr"], "not a path that begins with '/': 'usr'"),
        (["image={web}", "path=/none"], "has no folder '/none'"),
        (["image={web}", "path=/etc/issue"], "has no folder '/etc/issue'"),
        (["image=App"], "not an image name"),
        (
            ["image=nowhere:1"],
            "name its registry, as in image=registry.example/nowhere-gear:1",
        ),
        (["image={registry}/nowhere:1"], "has no {registry}/nowhere-gear:1"),
        (["image=127.0.0.1:1/app-gear:1"], "no registry answers at 127.0.0.1:1"),
    ],
)
def test_what_is_wrong_is_one_line(
    host: Node, registry: Registry, pushed: dict[str, str], options: list[str], says: str
) -> None:
    """
    And no volume is made, nor an image kept.
    """
    names = {"web": pushed["web"], "registry": registry.address}
    words = [word for option in options for word in ("-o", option.format(**names))]
    said = refused(host, "volume", "create", "-d", "gear", *words, "wrong")
    assert says.format(**names) in said
    assert "wrong" not in host.engine.docker("volume", "ls", "-q").stdout.split()
    assert list((host.inner_root / "volumes").iterdir()) == []


def test_a_volume_in_use_is_not_removed(host: Node, pushed: dict[str, str], volume: str) -> None:
    """
    docker refuses by itself, and the driver whoever else asks; the plugin stays enabled.
    """
    create(host, volume, f"image={pushed['web']}")
    with holding(host, f"{volume}:/v"):
        assert "volume is in use" in refused(host, "volume", "rm", volume)
        status, answer = call(host, "Remove", Name=volume)
        assert status == 409
        assert answer == {
            "Err": f"volume {volume} is mounted; stop the containers that use it, then remove it"
        }
        assert "in use" in refused(host, "plugin", "disable", "gear")
    assert not mounted(host, volume)


def test_a_killed_plugin_takes_no_volume_along(
    host: Node, pushed: dict[str, str], volume: str
) -> None:
    """
    Containers go on reading; what is missing comes when the plugin is back; then it unmounts.
    """
    create(host, volume, f"image={pushed['web']}")
    with holding(host, f"{volume}:/v") as container:
        read = ("exec", container, "sha256sum", f"/v/{JSON}")
        content = host.engine.docker(*read).stdout
        host.kill_plugin()
        assert mounted(host, volume)
        assert host.engine.docker(*read).stdout == content

        def reads() -> bool:
            new = ("exec", container, "sha256sum", "/v/usr/lib/python3.11/tarfile.py")
            return host.engine.docker(*new, check=False).returncode == 0

        eventually(reads, timeout_s=120, what="healing")
        with holding(host, f"{volume}:/v"):
            pass
        assert mounted(host, volume)
    assert not mounted(host, volume)


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.full)])
def test_volumes_survive_the_engine(
    host: Node, pushed: dict[str, str], volume: str, how: str
) -> None:
    """
    dockerd ends while a container uses them, at its leisure or by kill -9.
    """
    plain = f"{volume}-plain"
    create(host, volume, f"image={pushed['web']}", "mode=rw")
    create(host, plain)
    mounts = (f"{volume}:/v", f"{plain}:/p")
    with holding(host, *mounts) as container:
        host.engine.docker("exec", container, "sh", "-c", "echo x > /v/new; echo y > /p/new")
        if how == "kill":
            host.engine.kill()
            host.engine.start_again("overlay2")
        else:
            host.engine.restart("overlay2")
        have_plugin(host)
    assert sh(host, mounts[0], f"cat /v/new; head -c 3 /v/{JSON}", "-v", mounts[1]) == 'x\nr""'
    assert sh(host, mounts[1], "cat /p/new") == "y\n"
    eventually(lambda: not mounted(host, volume), what="unmounting")
    host.engine.docker("volume", "rm", volume, plain)


def test_images_are_volumes_beside_containers_of_gear(node: Node, pushed: dict[str, str]) -> None:
    """
    On Gear's own storage driver: one image as a container, another as its volume, found
    on the node; removing the image leaves it to the volume, and the volume takes it along.
    """
    for name in ("web", "nginx"):
        pull(node, pushed[name])
    index = node.image(pushed["nginx"])
    create(node, "beside", f"image={pushed['nginx']}", "path=/etc/nginx", "mode=rw")
    node.engine.docker("rmi", pushed["nginx"])
    assert (node.inner_root / "images" / index).is_dir()
    words = ("run", "--rm", "--network", "none", "--user", "0", "-v", "beside:/v")
    script = "echo more >> /v/nginx.conf; tail -n 1 /v/nginx.conf; ls /v/sites-enabled"
    ran = node.engine.docker(*words, "--entrypoint", "sh", pushed["web"], "-c", script)
    assert ran.stdout.split()[0] == "more"
    node.engine.docker("volume", "rm", "beside")
    assert not (node.inner_root / "images" / index).exists()

"""
What docker does with Gear images on a node besides running them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from tests.engine import odd_files
from tests.engine.compare import Scan, differences, scan
from tests.engine.containers import DOCKERS_OWN, original, pull, running, runs, tree
from tests.engine.engine import Engine
from tests.engine.world import Gear, Node
from tests.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.root]


@pytest.mark.parametrize("name", ["web", "torture"])
def test_push_and_save_give_back_the_layer_as_it_was_pulled(
    node: Node, gear: Gear, pushed: dict[str, str], tmp_path: Path, name: str
) -> None:
    """
    docker reads it through the mount; the digests are engine A's.

    The torture image has a `/.gear` folder of its own.
    """
    pull(node, pushed[name])

    def layer(engine: Engine, ref: str) -> str:
        return engine.docker("image", "inspect", ref, "-f", "{{json .RootFS.Layers}}").stdout

    assert layer(node.engine, pushed[name]) == layer(gear.engine, pushed[name])
    node.engine.docker("save", "-o", str(tmp_path / "saved.tar"), pushed[name])
    with tarfile.open(tmp_path / "saved.tar") as archive:
        inner = next(name for name in archive.getnames() if name.endswith("layer.tar"))
        data = archive.extractfile(inner)
        assert data is not None
        saved = hashlib.sha256(data.read()).hexdigest()
    assert json.loads(layer(node.engine, pushed[name])) == [f"sha256:{saved}"]

    again = pushed[name].replace(f"{name}-gear", f"again-{time.time_ns()}")
    node.engine.docker("tag", pushed[name], again)
    node.engine.docker("push", again)
    gear.engine.docker("pull", again)
    assert layer(gear.engine, again) == layer(gear.engine, pushed[name])
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


ODD_BUILD = """\
FROM {base}
USER 0
ENV MANY=200
COPY odd_files.py /
RUN python3 /odd_files.py make
RUN python3 /odd_files.py change
RUN python3 /odd_files.py again
"""


def build_odd(engine: Engine, base: str, folder: Path) -> str:
    """An image of every odd file that a program can make, on *base*."""
    ref = f"odd-on-{base.rpartition('/')[2]}"
    (folder / "Dockerfile").write_text(ODD_BUILD.replace("{base}", base))
    shutil.copy(Path(odd_files.__file__), folder / "odd_files.py")
    engine.docker("build", "--network", "none", "-t", ref, str(folder))
    return ref


@pytest.fixture(scope="module")
def odd_original(
    engine_a: Engine, pushed: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Scan:
    """That image as engine A makes and shows it."""
    ref = build_odd(engine_a, original(pushed, "web"), tmp_path_factory.mktemp("odd"))
    with running(engine_a, ref) as container:
        return scan(tree(engine_a, container), DOCKERS_OWN)


def test_every_odd_file_survives_a_build_on_a_gear_image(
    node: Node, pushed: dict[str, str], odd_original: Scan, tmp_path: Path
) -> None:
    """
    Three layers of them, each read back from a container; as on overlay2, but for the hour.
    """
    pull(node, pushed["web"])
    ref = build_odd(node.engine, pushed["web"], tmp_path)
    try:
        with running(node.engine, ref) as container:
            found = differences(odd_original, scan(tree(node.engine, container), DOCKERS_OWN))
    finally:
        node.engine.docker("rmi", ref)
    assert [line for line in found if ": mtime_ns " not in line] == []


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
    eventually(lambda: not (node.inner_root / "private" / index).exists(), what="forgetting")
    assert node.cached() == cached


def test_a_restarted_engine_finds_everything(node: Node, pushed: dict[str, str]) -> None:
    """
    dockerd stops and starts again: images are there and run.
    """
    pull(node, pushed["web"])
    node.engine.restart("gear")
    assert runs(node, pushed["web"])

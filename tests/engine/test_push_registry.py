"""`gear push` through a real engine: registries that refuse or are gone; etcd as the catalog."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gear_plugin.catalog import open_catalog
from gear_plugin.digest import Digest, object_id
from gear_plugin.names import ImageId
from tests.engine.conftest import WORK
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.world import Gear

USERS = "gear:$2b$04$iIB2bCw0KLLAQtmiXfb9LOPyfNbs9oJ3dkU0PxTtVlOnTIMaa2VOG\n"
"""Password `secret`."""
CONTENTS = {"etc/name": b"a name\n", "usr/text": b"the same line again\n" * 5000}


@dataclass(frozen=True)
class EtcdGear(Gear):
    """`gear` with its catalog in etcd."""

    url: str = ""

    @property
    def catalog(self) -> str:
        return self.url


@pytest.fixture(scope="module")
def closed_registry() -> Iterator[Registry]:
    """A registry that wants a password."""
    made = Registry(WORK / "closed-registry", users=USERS)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def engine(closed_registry: Registry) -> Iterator[Engine]:
    made = Engine("push", WORK / "push", env=closed_registry.client_environ)
    try:
        made.start("overlay2")
        yield made
    finally:
        made.remove()


@pytest.fixture
def clustered(engine: Engine, tmp_path: Path, etcd_url: str) -> EtcdGear:
    return EtcdGear(engine, tmp_path / "root", tmp_path / "store", etcd_url)


def make(gear: Gear, ref: str, folder: Path) -> None:
    """A small image in the engine, built into a Gear image."""
    with tarfile.open(folder / "image.tar", "w") as archive:
        for name, content in CONTENTS.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    gear.engine.docker("import", str(folder / "image.tar"), ref)
    gear("build", ref)


def refused(gear: Gear, ref: str) -> str:
    """The one line of a push that ends with 7."""
    done = gear("push", ref, check=False)
    assert (done.returncode, done.stdout) == (7, ""), done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("gear: ")
    return line


def test_a_registry_that_wants_a_password(
    clustered: EtcdGear, closed_registry: Registry, tmp_path: Path
) -> None:
    """
    Refused without `docker login`, in the registry's words; with it, all is there.
    """
    ref = f"{closed_registry.address}/app"
    make(clustered, f"{ref}:1", tmp_path)
    line = refused(clustered, f"{ref}-gear:1")
    assert "no basic auth credentials" in line or "unauthorized" in line

    login = ("login", "-u", "gear", "--password-stdin", closed_registry.address)
    clustered.engine.docker(*login, input="secret")
    try:
        result = json.loads(clustered("push", "--json", f"{ref}-gear:1").stdout)
    finally:
        clustered.engine.docker("logout", closed_registry.address)
    # The objects had arrived with the first try.
    assert (result["objects"], result["new_objects"]) == (2, 0)
    assert result["saved_bytes"] == sum(map(len, CONTENTS.values()))

    image = ImageId.parse(f"{ref}:1")
    catalog = open_catalog(clustered.url)
    assert catalog.objects_of(image) == {Digest.of(content) for content in CONTENTS.values()}
    for path, content in CONTENTS.items():
        assert catalog.resolve(object_id(str(image), path.encode())) == Digest.of(content)
    catalog.close()
    listed = json.loads(clustered("images", "--json").stdout)
    assert [entry["gear_image"] for entry in listed] == [f"{ref}-gear:1"]


def test_a_registry_that_is_down(clustered: EtcdGear, tmp_path: Path) -> None:
    """
    The engine's reason in one line; store and catalog have their part already.
    """
    ref = "127.0.0.1:1/app"
    make(clustered, f"{ref}:1", tmp_path)
    line = refused(clustered, f"{ref}-gear:1")
    assert "connection refused" in line
    listed = json.loads(clustered("images", "--json").stdout)
    assert [entry["gear_image"] for entry in listed] == [f"{ref}-gear:1"]

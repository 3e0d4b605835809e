"""Where the volume driver finds images: on its node, or in the registry of the name."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gear_plugin.cli import wiring
from gear_plugin.config import Config
from gear_plugin.digest import Digest
from gear_plugin.errors import (
    AccessDenied,
    BadConfig,
    GearError,
    ImageNotFound,
    IndexDamaged,
    SourceUnavailable,
    Unsupported,
)
from gear_plugin.jobs.index_sources import take_index
from gear_plugin.layers import NodeImages
from gear_plugin.names import ImageId
from tests.unit.image.indexes import index
from tests.unit.image.tars import tar
from tests.unit.jobs import layouts
from tests.unit.jobs.registries import FakeRegistry, Reply, Request, serving
from tests.unit.jobs.saves import CONFIG, file
from tests.unit.layers.layer_damage import whole

NAME = ImageId.parse("library/nginx-gear:1.25")
EROFS, MANIFEST = index()
INDEX = Digest.of(EROFS).hex
LAYER = whole(EROFS, MANIFEST)
USER = base64.b64encode(b"me:secret").decode()


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    """Holds the image as `team/app-gear:1`."""
    registry = FakeRegistry()
    registry.add("team/app-gear", layouts.Image("1", [LAYER], CONFIG, "zstd"))
    with serving(registry):
        yield registry


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A node's settings, docker's folder beside it."""
    (tmp_path / "docker").mkdir()
    docker = tmp_path / "docker"
    return Config(root=tmp_path / "gear", docker_etc=docker, docker_config=docker)


Find = Callable[[ImageId], str]


@pytest.fixture
def images(config: Config) -> NodeImages:
    return NodeImages(config.root)


@pytest.fixture
def find(config: Config, images: NodeImages) -> Find:
    """The index of an image, as a volume has it found."""

    def note(digest: str) -> bool:
        return images.objects(digest) is not None

    return lambda image: wiring.take_in_for_volume(config, images, image, note)


def install(images: NodeImages, folder: Path) -> None:
    """As the storage driver of the same node does."""
    folder.mkdir()
    take_index(io.BytesIO(LAYER), folder)
    images.install(folder)


def there(server: FakeRegistry) -> ImageId:
    return ImageId.parse(f"{server.address}/team/app-gear:1")


def test_an_image_of_the_node_is_found_without_a_registry(
    find: Find, images: NodeImages, tmp_path: Path
) -> None:
    """
    By the name in its manifest.
    """
    install(images, tmp_path / "layer")
    assert find(NAME) == INDEX


def test_an_image_is_fetched_from_the_registry_of_its_name(
    find: Find, images: NodeImages, server: FakeRegistry
) -> None:
    """
    It is on the node afterwards, whole and checked, and nothing else is.
    """
    assert find(there(server)) == INDEX
    assert images.index_file(INDEX).read_bytes() == EROFS
    left = [name for name in os.listdir(images.index_file(INDEX).parent.parent) if name[0] == "."]
    assert left == []


def test_an_image_that_is_here_under_another_name_is_not_installed_again(
    find: Find, images: NodeImages, server: FakeRegistry, tmp_path: Path
) -> None:
    """
    The index is the same.
    """
    install(images, tmp_path / "layer")
    before = images.index_file(INDEX).stat().st_ino
    assert find(there(server)) == INDEX
    assert images.index_file(INDEX).stat().st_ino == before


def test_a_login_is_the_one_that_docker_has(
    find: Find, server: FakeRegistry, config: Config
) -> None:
    """
    Without it, one line says what to run and where the login has to be.
    """

    def guard(request: Request) -> Reply | None:
        if request.headers.get("Authorization") == f"Basic {USER}":
            return None
        return Reply(401, headers={"WWW-Authenticate": 'Basic realm="test"'})

    server.guard = guard
    with pytest.raises(AccessDenied) as failed:
        find(there(server))
    said = str(failed.value)
    assert f"`docker login {server.address}`" in said
    assert f"looks for it in {config.docker_config}/config.json" in said
    auths = {"auths": {server.address: {"auth": USER}}}
    (config.docker_etc / "config.json").write_text(json.dumps(auths))
    assert find(there(server)) == INDEX


def _bad_certificate(server: FakeRegistry, config: Config) -> None:
    folder = config.docker_etc / "certs.d" / server.address
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_text("none")


def _ordinary(server: FakeRegistry, config: Config) -> None:
    server.add("team/app-gear", layouts.Image("1", [tar(file("a", b"one"))], CONFIG))


def _damaged(server: FakeRegistry, config: Config) -> None:
    layer = LAYER.replace(EROFS, EROFS[:2000] + b"\xff" * 8 + EROFS[2008:])
    server.add("team/app-gear", layouts.Image("1", [layer], CONFIG))


def _gone(server: FakeRegistry, config: Config) -> None:
    server.manifests.clear()


def _down(server: FakeRegistry, config: Config) -> None:
    server.guard = lambda _: Reply(500)


@pytest.mark.parametrize(
    ("spoil", "expected", "words"),
    [
        (_bad_certificate, BadConfig, "certs.d"),
        (_ordinary, Unsupported, "not a Gear image: its layer holds 'a'"),
        (_damaged, IndexDamaged, "index"),
        (_gone, ImageNotFound, "the registry .* has no"),
        (_down, SourceUnavailable, "was not found: .* status 500"),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(
    find: Find,
    images: NodeImages,
    server: FakeRegistry,
    config: Config,
    spoil: Callable[[FakeRegistry, Config], None],
    expected: type[GearError],
    words: str,
) -> None:
    """
    And nothing of it is left.
    """
    spoil(server, config)
    with pytest.raises(expected, match=words) as failed:
        find(there(server))
    assert "\n" not in str(failed.value)
    assert list(images) == []


def test_a_name_without_a_registry_is_looked_for_on_the_node_alone(find: Find) -> None:
    """
    Nobody is asked for what was built here by a stranger's name.
    """
    with pytest.raises(ImageNotFound, match=r"name its registry, as in image=registry\.example/"):
        find(NAME)

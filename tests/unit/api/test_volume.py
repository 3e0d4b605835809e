"""The VolumeDriver protocol: shapes, options, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from gear_plugin.api import graphdriver, volume
from gear_plugin.api.plugin import plugin_app
from gear_plugin.errors import VolumeInUse, VolumeNotFound
from gear_plugin.layers import Showing, Shown, Volume, VolumeRecord
from gear_plugin.names import ImageId

INDEX = "ab" * 32
IMAGE = ImageId.parse("registry.example/app-gear:1")


class Volumes:
    """Remembers calls; `plain` and `shown` exist, `busy` is mounted."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def create(self, name: str, showing: Showing | None) -> None:
        self.calls.append(("create", name, showing))

    def remove(self, name: str) -> None:
        if name == "busy":
            raise VolumeInUse("volume busy is mounted")
        self.calls.append(("remove", name))

    def mount(self, name: str, user: str) -> Path:
        self.calls.append(("mount", name, user))
        return Path("/root/volumes") / name / "merged"

    def unmount(self, name: str, user: str) -> None:
        self.calls.append(("unmount", name, user))

    def get(self, name: str) -> Volume:
        for found in self.all():
            if found.record.name == name:
                return found
        raise VolumeNotFound(f"no volume {name}")

    def all(self) -> list[Volume]:
        shown = Shown(str(IMAGE), INDEX, True, "/srv", "/srv", 3, 70)
        return [
            Volume(VolumeRecord("plain", 1_700_000_000), Path("/root/volumes/plain/data")),
            Volume(VolumeRecord("shown", 0, shown), None),
        ]


@pytest.fixture
def volumes() -> Volumes:
    return Volumes()


@pytest.fixture
def docker(volumes: Volumes) -> FlaskClient:
    """Posts as dockerd does."""
    app = plugin_app([graphdriver.INTERFACE, volume.INTERFACE])
    volume.VolumeDriver(lambda: volumes).serve_on(app)
    return app.test_client()


def call(docker: FlaskClient, name: str, message: object) -> tuple[int, object]:
    answer = docker.post(f"/VolumeDriver.{name}", data=json.dumps(message).encode())
    return answer.status_code, answer.get_json(force=True)


PLAIN = {"Name": "plain", "Mountpoint": "/root/volumes/plain/data"}
SHOWN = {"Name": "shown", "Mountpoint": ""}


@pytest.mark.parametrize(
    ("name", "message", "answer"),
    [
        ("Capabilities", {}, {"Capabilities": {"Scope": "local"}}),
        ("Create", {"Name": "v", "Opts": {}}, {}),
        ("Create", {"Name": "v", "Opts": None}, {}),
        ("Create", {"Name": "v"}, {}),
        ("Remove", {"Name": "v"}, {}),
        ("Mount", {"Name": "v", "ID": "1"}, {"Mountpoint": "/root/volumes/v/merged"}),
        ("Unmount", {"Name": "v", "ID": "1"}, {}),
        ("Path", {"Name": "plain"}, {"Mountpoint": "/root/volumes/plain/data"}),
        ("Path", {"Name": "shown"}, {"Mountpoint": ""}),
        ("List", {}, {"Volumes": [PLAIN, SHOWN]}),
        (
            "Get",
            {"Name": "plain"},
            {"Volume": {**PLAIN, "CreatedAt": "2023-11-14T22:13:20Z", "Status": {}}},
        ),
        (
            "Get",
            {"Name": "shown"},
            {
                "Volume": {
                    **SHOWN,
                    "CreatedAt": "1970-01-01T00:00:00Z",
                    "Status": {
                        "Image": str(IMAGE),
                        "Index": f"sha256:{INDEX}",
                        "Mode": "rw",
                        "Path": "/srv",
                        "Mounted": False,
                        "ImageFiles": 3,
                        "ImageBytes": 70,
                    },
                }
            },
        ),
    ],
)
def test_answers_have_the_protocols_shape(
    docker: FlaskClient, name: str, message: object, answer: object
) -> None:
    """
    As moby's adapter decodes them.
    """
    assert call(docker, name, message) == (200, answer)


def test_it_says_that_it_is_both_drivers(docker: FlaskClient) -> None:
    """
    Asked for on the legacy socket.
    """
    answer = docker.post("/Plugin.Activate")
    assert answer.get_json(force=True) == {"Implements": ["GraphDriver", "VolumeDriver"]}


@pytest.mark.parametrize(
    ("options", "showing"),
    [
        ({}, None),
        ({"image": "registry.example/app-gear:1"}, Showing(IMAGE)),
        ({"image": "registry.example/app:1"}, Showing(IMAGE)),
        ({"image": "app"}, Showing(ImageId("app-gear", "latest"))),
        ({"image": "app", "mode": "ro"}, Showing(ImageId("app-gear", "latest"))),
        (
            {"image": "app", "mode": "rw", "path": "/srv/\udcff ü"},
            Showing(ImageId("app-gear", "latest"), writable=True, path=b"/srv/\xff \xc3\xbc"),
        ),
    ],
)
def test_options_say_what_is_shown(
    docker: FlaskClient, volumes: Volumes, options: dict[str, str], showing: Showing | None
) -> None:
    """
    The original's name does as well as the Gear image's; read-only and the whole by default.
    """
    assert call(docker, "Create", {"Name": "v", "Opts": options}) == (200, {})
    assert volumes.calls == [("create", "v", showing)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"imgae": "app"}, "unknown volume option 'imgae'; known: image, mode, path"),
        ({"image": "app", "size": "1G"}, "unknown volume option 'size'; known: image, mode, path"),
        ({"mode": "rw"}, "a volume with options needs image=NAME[:TAG]"),
        ({"image": ""}, "a volume with options needs image=NAME[:TAG]"),
        ({"image": "app", "mode": "rx"}, "volume option mode: ro or rw, not 'rx'"),
        ({"image": "app", "path": "srv"}, "volume option path: not a path that begins with '/'"),
        ({"image": "app", "path": "/a\0b"}, "volume option path: not a path"),
        ({"image": "app", "path": "/\ud800"}, "volume option path: not a path"),
        ({"image": "App:1"}, "not an image name"),
        ({"image": "../app"}, "not an image name"),
        ({"image": 1}, "Opts must be an object of strings"),
        ("image=app", "Opts must be an object of strings"),
    ],
)
def test_bad_options_are_one_line(
    docker: FlaskClient, volumes: Volumes, options: object, says: str
) -> None:
    """
    Which is what docker shows.
    """
    status, answer = call(docker, "Create", {"Name": "v", "Opts": options})
    assert status == 400
    assert isinstance(answer, dict)
    assert says in answer["Err"]
    assert "\n" not in answer["Err"]
    assert volumes.calls == []


@pytest.mark.parametrize(
    ("name", "message", "status", "says"),
    [
        ("Get", {"Name": "none"}, 404, "no volume none"),
        ("Path", {"Name": "none"}, 404, "no volume none"),
        ("Remove", {"Name": "busy"}, 409, "volume busy is mounted"),
        ("Mount", {"Name": "v"}, 400, "ID is missing"),
        ("Unmount", {"Name": "v"}, 400, "ID is missing"),
        ("Create", {}, 400, "Name is missing"),
        ("Create", {"Name": 1}, 400, "Name must be a string"),
        ("List", [], 400, "not a JSON object"),
    ],
)
def test_errors_say_what_is_wrong(
    docker: FlaskClient, name: str, message: object, status: int, says: str
) -> None:
    """
    docker takes 404 for a volume that is not there, and makes it.
    """
    found, answer = call(docker, name, message)
    assert found == status
    assert isinstance(answer, dict)
    assert says in answer["Err"]


def test_every_option_is_documented() -> None:
    """
    In docs/volumes.md, and nothing that does not exist.
    """
    text = (Path(__file__).parents[3] / "docs" / "volumes.md").read_text()
    table = text.split("\n## Options\n")[1].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)=", table, re.MULTILINE))
    assert documented == set(volume.OPTIONS)

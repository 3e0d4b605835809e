"""The GraphDriver protocol's shell: bodies, errors, shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from gear_plugin import errors
from gear_plugin.api.graphdriver import INTERFACE, GraphDriver
from gear_plugin.api.plugin import STATUS, plugin_app
from gear_plugin.errors import GearError, LayerNotFound
from gear_plugin.layers import Change, ChangeKind


class Layers:
    """Remembers calls; every layer but `missing` exists."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def _known(self, layer: str) -> None:
        if layer == "missing":
            raise LayerNotFound("no layer missing")

    def begin(self) -> None:
        self.calls.append(("begin",))

    def create(self, layer: str, parent: str, *, writable: bool) -> None:
        self.calls.append(("create", layer, parent, writable))

    def remove(self, layer: str) -> None:
        self.calls.append(("remove", layer))

    def exists(self, layer: str) -> bool:
        return layer != "missing"

    def get(self, layer: str) -> Path:
        self._known(layer)
        return Path("/root/containers") / layer / "merged"

    def put(self, layer: str) -> None:
        self.calls.append(("put", layer))

    def cleanup(self) -> None:
        self.calls.append(("cleanup",))

    def apply(self, layer: str, read: Callable[[int], bytes]) -> int:
        data = b"".join(iter(lambda: read(4), b""))
        self.calls.append(("apply", layer, data))
        return len(data)

    def diff(self, layer: str, parent: str) -> Iterator[bytes]:
        self._known(layer)
        yield from (b"tar", b"bytes")

    def changes(self, layer: str, parent: str) -> list[Change]:
        return [Change(b"/a", ChangeKind.DELETE)]

    def diff_size(self, layer: str, parent: str) -> int:
        return 7

    def metadata(self, layer: str) -> dict[str, str]:
        return {"UpperDir": "/u"}


@pytest.fixture
def layers() -> Layers:
    return Layers()


@pytest.fixture
def docker(layers: Layers) -> FlaskClient:
    """Posts as dockerd does."""
    app = plugin_app([INTERFACE])
    GraphDriver(lambda: layers, lambda: [("Mount Way", "direct")]).serve_on(app)
    return app.test_client()


def call(docker: FlaskClient, name: str, body: str = "{}") -> tuple[int, object]:
    answer = docker.post(f"/GraphDriver.{name}", data=body.encode())
    return answer.status_code, answer.get_json(force=True)


@pytest.mark.parametrize(
    ("name", "body", "answer"),
    [
        ("Capabilities", "{}", {"Capabilities": {"ReproducesExactDiffs": False}}),
        ("Status", "{}", {"Status": [["Mount Way", "direct"]]}),
        ("Exists", '{"ID": "a"}', {"Exists": True}),
        ("Exists", '{"ID": "missing"}', {"Exists": False}),
        ("Get", '{"ID": "a", "MountLabel": ""}', {"Dir": "/root/containers/a/merged"}),
        ("GetMetadata", '{"ID": "a"}', {"Metadata": {"UpperDir": "/u"}}),
        ("Changes", '{"ID": "a", "Parent": "b"}', {"Changes": [{"Path": "/a", "Kind": 2}]}),
        ("DiffSize", '{"ID": "a"}', {"Size": 7}),
        ("Cleanup", "{}", {}),
    ],
)
def test_answers_have_the_shape_docker_decodes(
    docker: FlaskClient, name: str, body: str, answer: object
) -> None:
    """
    moby daemon/graphdriver/proxy.go decodes exactly these.
    """
    assert call(docker, name, body) == (200, answer)


def test_create_tells_containers_from_images(docker: FlaskClient, layers: Layers) -> None:
    """
    docker leaves Parent out when there is none.
    """
    call(docker, "Create", '{"ID": "a"}')
    call(docker, "CreateReadWrite", '{"ID": "b", "Parent": "a", "StorageOpt": null}')
    assert layers.calls == [("create", "a", "", False), ("create", "b", "a", True)]


@pytest.mark.parametrize("body", ["", "[]", "null", "{", '"x"', "[" * 100_000])
@pytest.mark.parametrize("name", ["Create", "Remove", "Get", "Put", "Init", "Diff", "DiffSize"])
def test_an_empty_or_odd_body_is_refused(
    docker: FlaskClient, layers: Layers, name: str, body: str
) -> None:
    """
    docker repeats a call whose connection broke with an empty body.
    """
    status, answer = call(docker, name, body)
    assert status == 400
    assert isinstance(answer, dict)
    assert "body" in answer["Err"]
    assert layers.calls == []


def test_activation_needs_no_body(docker: FlaskClient) -> None:
    """
    The only call that docker sends empty.
    """
    answer = docker.post("/Plugin.Activate")
    assert answer.get_json(force=True) == {"Implements": ["GraphDriver"]}


def test_apply_reads_the_raw_body(docker: FlaskClient, layers: Layers) -> None:
    """
    The tar is the body; id and parent are in the query.
    """
    answer = docker.post("/GraphDriver.ApplyDiff?id=a&parent=", data=b"0123456789")
    assert answer.get_json(force=True) == {"Size": 10}
    assert layers.calls == [("apply", "a", b"0123456789")]


def test_diff_streams_and_its_errors_are_not_a_tar(docker: FlaskClient) -> None:
    """
    docker takes a 200 for a tar, so a failure is another status.
    """
    assert docker.post("/GraphDriver.Diff", data=b'{"ID": "a"}').data == b"tarbytes"
    status, answer = call(docker, "Diff", '{"ID": "missing"}')
    assert (status, answer) == (404, {"Err": "no layer missing"})


@pytest.mark.parametrize(
    "message",
    [
        '{"Home": "/tmp/h", "UIDMaps": [{"container_id": 0, "host_id": 1, "size": 9}]}',
        '{"Home": "/tmp/h", "Opts": ["gear.size=3"]}',
        '{"Home": "/tmp/h", "Opts": 5}',
        '{"Home": "/tmp/h", "Opts": "gear.size=3"}',
        '{"Home": "/proc/h"}',
        '{"Home": "/dev/null"}',
        '{"Home": "/tmp/\\u0000"}',
        '{"Home": "/tmp/\\ud800"}',
        "{}",
    ],
    ids=lambda message: message[:40],
)
def test_init_refuses_what_it_cannot_do(docker: FlaskClient, message: str) -> None:
    """
    An option that would silently do nothing is an error.
    """
    status, answer = call(docker, "Init", message)
    assert status in (400, 501)
    assert isinstance(answer, dict)
    assert answer["Err"]


def test_init_makes_home_and_may_repeat(
    docker: FlaskClient, layers: Layers, tmp_path: Path
) -> None:
    """
    dockerd does not create Home, and calls Init again in one plugin life; each
    time it is a new daemon, without the references of the last one.
    """
    body = f'{{"Home": "{tmp_path}/gear", "Opts": null, "UIDMaps": null, "GIDMaps": null}}'
    assert call(docker, "Init", body) == (200, {})
    assert call(docker, "Init", body) == (200, {})
    assert layers.calls == [("begin",), ("begin",)]
    assert (tmp_path / "gear").is_dir()


@pytest.mark.parametrize(
    ("name", "body", "word"),
    [
        ("Create", '{"ID": "a", "StorageOpt": {"size": "1G"}}', "--storage-opt size"),
        ("CreateReadWrite", '{"ID": "a", "StorageOpt": {"b": "", "a": ""}}', "--storage-opt a, "),
        ("CreateReadWrite", '{"ID": "a", "StorageOpt": "size"}', "StorageOpt is not"),
        ("CreateReadWrite", '{"ID": "a", "MountLabel": "system_u:object_r:x"}', "label=disable"),
        ("Get", '{"ID": "a", "MountLabel": "system_u:object_r:x"}', "label=disable"),
    ],
)
def test_what_gear_cannot_give_a_container_is_refused(
    docker: FlaskClient, layers: Layers, name: str, body: str, word: str
) -> None:
    """
    A limit or a label that is not obeyed must not look as if it were.
    """
    status, answer = call(docker, name, body)
    assert status in (400, 501)
    assert isinstance(answer, dict)
    assert word in answer["Err"] and "\n" not in answer["Err"]
    assert layers.calls == []


def test_an_unknown_call_answers_in_json(docker: FlaskClient) -> None:
    """
    docker shows the raw body of an error; a page of HTML would reach the user.
    """
    status, answer = call(docker, "NoSuchCall")
    assert status == 404
    assert isinstance(answer, dict)
    assert "NoSuchCall" in answer["Err"]


def test_every_error_has_a_status() -> None:
    """
    The border's table is complete.
    """
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, GearError):
            assert any(issubclass(kind, row) for row, _ in STATUS)

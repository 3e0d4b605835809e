"""`gear build`, `gear push` and `gear images`, over an engine in memory and a real store."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gear_plugin import cli
from gear_plugin import log as logs
from gear_plugin.cli import wiring
from gear_plugin.config import Config
from gear_plugin.digest import Digest
from gear_plugin.errors import EngineUnavailable, SourceUnavailable
from gear_plugin.jobs import Platform, RegistrySettings, oci
from gear_plugin.jobs.engine_facts import EngineFacts
from gear_plugin.jobs.index_sources import take_index
from gear_plugin.layers import NodeImages
from gear_plugin.names import ImageId
from tests.unit.image.tars import tar
from tests.unit.jobs import layouts
from tests.unit.jobs.fakes import FakeEngine
from tests.unit.jobs.registries import FakeRegistry, serving
from tests.unit.jobs.saves import CONFIG, file, saved_by_20

FACTS = EngineFacts("unix:///d", "20.10", "1.41", False, "overlay2", {}, Path("/nowhere"), None)
LAYER = tar(file("a", b"same" * 500), file("b", b"same" * 500), file("c", b"other"))


class ClosingEngine(FakeEngine):
    """Knows whether the command has closed it."""

    closed = True

    def close(self) -> None:
        self.closed = True


class Gear:
    """Runs the command in this process; the engine alone is not real."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self.engine = ClosingEngine({"app:1": saved_by_20("app:1", [LAYER])})
        self.stderr = ""
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        monkeypatch.setattr(wiring, "engine", self._open_engine)
        monkeypatch.setattr(wiring, "_ask_engine", lambda _config: FACTS)
        monkeypatch.setattr(logs, "setup", lambda *_: None)

    def _open_engine(self, config: Config) -> ClosingEngine:
        self.engine.closed = False
        return self.engine

    def __call__(self, *words: str, code: int = 0) -> str:
        """What it printed on stdout."""
        places = ["--root", f"{self.folder}/root", "--store", f"{self.folder}/store"]
        places += ["--catalog", f"sqlite:///{self.folder}/catalog.sqlite"]
        self._monkeypatch.setattr(sys, "argv", ["gear", *places, *words])
        ended = 0
        try:
            cli.main()
        except SystemExit as end:
            assert isinstance(end.code, int)
            ended = end.code
        stdout, self.stderr = self._capfd.readouterr()
        assert ended == code, self.stderr
        assert self.engine.closed
        return stdout


@pytest.fixture
def gear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Gear:
    return Gear(tmp_path, monkeypatch, capfd)


def test_build_says_what_it_made(gear: Gear) -> None:
    """
    One line on stdout; the steps are on stderr, in plain lines when nobody watches.
    """
    (line,) = gear("build", "app:1").splitlines()
    assert line.startswith("app-gear:1: index ")
    assert "3 files in 2 objects" in line
    assert gear.stderr.splitlines()[0].startswith("saving app:1 from the engine")
    assert "\x1b" not in gear.stderr
    assert "app-gear:1" in gear.engine.images


def test_json_is_all_that_is_on_stdout(gear: Gear) -> None:
    """
    Of every command, so that it can be piped; the steps stay on stderr.
    """
    built = json.loads(gear("build", "--json", "app:1"))
    assert (built["files"], built["objects"], built["object_bytes"]) == (3, 2, 2005)
    pushed = json.loads(gear("push", "--json", "app-gear:1"))
    assert (pushed["new_objects"], pushed["new_bytes"], pushed["saved_bytes"]) == (2, 2005, 0)
    (listed,) = json.loads(gear("images", "--json"))
    assert listed["gear_image"] == "app-gear:1"
    assert listed["index"] == f"sha256:{built['index']}"


def test_an_existing_folder_that_is_no_store_is_not_filled(tmp_path: Path) -> None:
    """
    It may be the mount point of a share that is not mounted.
    """
    mount_point = tmp_path / "share"
    mount_point.mkdir()
    with pytest.raises(SourceUnavailable, match="--create-store"):
        wiring.store(Config(store=str(mount_point)), create=False)
    assert list(mount_point.iterdir()) == []
    wiring.store(Config(store=str(mount_point)), create=True)
    wiring.store(Config(store=str(mount_point)), create=False)
    wiring.store(Config(store=str(tmp_path / "new" / "store")), create=False)


def test_a_store_that_is_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceUnavailable, match="is a file"):
        wiring.store(Config(root=tmp_path, store=str(tmp_path / "file")), create=False)


def test_pushing_again_sends_nothing(gear: Gear) -> None:
    """
    The line says how much was saved.
    """
    gear("build", "app:1")
    assert gear("push", "app-gear:1").startswith(
        "app-gear:1: 2 of 2 objects were new: 2 kB, stored in 2 kB; "
        "not sent again: 0 B, 0 B in the store; "
    )
    assert gear("push", "app-gear:1").startswith(
        "app-gear:1: 0 of 2 objects were new: 0 B, stored in 0 B; "
        "not sent again: 2 kB, 2 kB in the store; "
    )
    assert gear.engine.pushed == ["app-gear:1", "app-gear:1"]


def test_a_tag_may_be_left_out(gear: Gear) -> None:
    """
    It is `latest`, as in docker.
    """
    gear.engine.images["app:latest"] = gear.engine.images["app:1"]
    assert gear("build", "app").startswith("app-gear:latest: ")


def test_images_is_a_table_of_what_there_is(gear: Gear) -> None:
    """
    One line an image under a header, in columns; where it is, and what of it is cached.
    """
    header = gear("images")
    assert header.split() == ["IMAGE", "INDEX", "OBJECTS", "SIZE", "BUILT", "WHERE", "CACHED"]
    gear("build", "app:1")
    titles, row = gear("images").splitlines()
    assert row.split()[0] == "app-gear:1"
    assert row[titles.index("OBJECTS") :].split()[:3] == ["2", "2", "kB"]
    assert row[titles.index("WHERE") :].split() == ["built", "-"]
    gear("push", "app-gear:1")
    assert gear("images").splitlines()[1].split()[-2:] == ["pushed,built", "-"]
    assert gear("images", "--local").splitlines()[1].split()[-2:] == ["built", "-"]


def test_images_on_a_node_say_how_much_is_here(gear: Gear) -> None:
    """
    Here one of two objects, under the name that the manifest gives it.
    """
    gear("build", "app:1")
    install(gear, b"other")
    titles, row = gear("images", "--local").splitlines()
    assert row[titles.index("WHERE") :].split() == ["built,node", "5", "B", "(0", "%)"]
    shutil.rmtree(gear.folder / "root" / "build")
    (listed,) = json.loads(gear("images", "--local", "--json"))
    assert (listed["built"], listed["installed"], listed["created_s"]) == (False, True, None)
    assert (listed["cached_objects"], listed["cached_bytes"]) == (1, 5)


def install(gear: Gear, *contents: bytes) -> None:
    """Put app-gear:1 on the node, and these contents into its cache."""
    root = gear.folder / "root"
    layer = gear.folder / "layer"
    layer.mkdir()
    take_index(io.BytesIO(gear.engine.layer(ImageId.parse("app-gear:1"))), layer)
    assert NodeImages(root).install(layer)
    for content in contents:
        path = root / "public" / Digest.of(content).shard_path
        path.parent.mkdir(parents=True)
        path.write_bytes(content)


def test_a_name_with_two_indexes_has_two_lines(gear: Gear) -> None:
    """
    What was built since is not what was pushed.
    """
    gear("build", "app:1")
    gear("push", "app-gear:1")
    gear.engine.images["app:1"] = saved_by_20("app:1", [tar(file("a", b"newer"))])
    gear("build", "app:1")
    rows = [line.split() for line in gear("images").splitlines()[1:]]
    assert sorted((row[0], row[-2]) for row in rows) == [
        ("app-gear:1", "built"),
        ("app-gear:1", "pushed"),
    ]
    assert rows[0][1] != rows[1][1]


def test_without_the_catalog_the_rest_is_listed(gear: Gear) -> None:
    """
    And the command fails all the same, with the catalog's reason.
    """
    gear("build", "app:1")
    (gear.folder / "catalog.sqlite").write_bytes(b"no catalog" * 1000)
    assert "app-gear:1" in gear("images", code=5)
    assert "no sound catalog" in gear.stderr
    (listed,) = json.loads(gear("images", "--json", code=5))
    assert listed["built"] is True


def test_a_catalog_that_hangs_is_given_up(gear: Gear, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    In bounded time, whatever it is that hangs.
    """

    def hang(config: Config) -> None:
        time.sleep(600)

    monkeypatch.setattr(wiring, "catalog", hang)
    monkeypatch.setenv("GEAR_CATALOG_TIMEOUT_S", "0.5")
    monkeypatch.setattr(wiring, "_CATALOG_MARGIN_S", 0)
    (gear.folder / "catalog.sqlite").write_bytes(b"x")
    gear("images", code=7)
    assert "no answer within 0.5 s" in gear.stderr


def test_looking_makes_nothing(gear: Gear) -> None:
    """
    No catalog, no folder.
    """
    for words in (["images"], ["images", "--local"]):
        gear(*words)
    gear("inspect", "app-gear:1", code=3)
    assert list(gear.folder.iterdir()) == []


def test_a_damaged_build_is_said_and_the_rest_listed(gear: Gear) -> None:
    """
    Also what is no build at all is passed over.
    """
    gear("build", "app:1")
    gear.engine.images["b:1"] = gear.engine.images["app:1"]
    gear("build", "b:1")
    builds = gear.folder / "root" / "build"
    (builds / "app=1" / "build" / "build.json").write_text("{")
    (builds / "Notes").mkdir()
    (builds / "c=1").touch()
    assert [line.split()[0] for line in gear("images").splitlines()[1:]] == ["b-gear:1"]
    assert "app=1" in gear.stderr and gear.stderr.count("\n") == 1


def test_an_archive_needs_no_engine(gear: Gear) -> None:
    """
    Neither to build from, nor to write; the original stays as it is.
    """
    archive, target = gear.folder / "saved.tar", gear.folder / "gear.tar"
    archive.write_bytes(gear.engine.images["app:1"])
    gear.engine.images.clear()
    built = json.loads(gear("build", "--from", str(archive), "app:1", "-o", str(target), "--json"))
    assert (built["source"], built["loaded"], built["output"]) == (str(archive), False, str(target))
    assert gear.engine.images == {}
    gear.engine.load(target)
    assert list(gear.engine.images) == ["app-gear:1"]


def test_an_archive_is_never_replaced_by_what_is_made_of_it(gear: Gear) -> None:
    """
    By whatever name; a Gear image alone could not be built again.
    """
    archive, other = gear.folder / "saved.tar", gear.folder / "other.tar"
    archive.write_bytes(gear.engine.images["app:1"])
    other.symlink_to(archive)
    gear("build", "--from", str(archive), "app:1", "-o", str(other), code=2)
    assert "would replace" in gear.stderr
    assert archive.read_bytes() == gear.engine.images["app:1"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["build", "app:1"], "; without one, --from registry or an archive"),
        (["build", "--from", "saved.tar", "--load", "app:1"], ""),
        (["restore", "app-gear:1"], "; without one, --output FILE"),
    ],
)
def test_who_has_no_engine_is_told_what_needs_none(
    gear: Gear, monkeypatch: pytest.MonkeyPatch, words: list[str], hint: str
) -> None:
    """
    Only where there is such a way.
    """

    def nobody(_config: Config) -> NoReturn:
        raise EngineUnavailable("no Docker engine")

    monkeypatch.setattr(wiring, "engine", nobody)
    assert gear(*words, code=7) == ""
    assert gear.stderr == f"gear: no Docker engine{hint}\n"


def test_load_puts_the_result_into_the_engine_as_well(gear: Gear) -> None:
    """
    Wherever the image is from; and --output alone keeps an engine's image out of it.
    """
    archive, target = gear.folder / "saved.tar", gear.folder / "gear.tar"
    archive.write_bytes(gear.engine.images["app:1"])
    gear("build", "app:1", "-o", str(target))
    assert "app-gear:1" not in gear.engine.images
    gear("build", "--from", str(archive), "--load", "app:1")
    assert "app-gear:1" in gear.engine.images


def test_an_archive_on_stdout_is_all_that_is_there(
    gear: Gear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The line about the result goes to stderr then.
    """
    archive = gear.folder / "saved.tar"
    archive.write_bytes(gear.engine.images["app:1"])
    words = ["build", "--from", str(archive), "app:1", "--output"]
    command = [sys.executable, "-m", "gear_plugin", "--root", str(gear.folder / "root"), *words]
    done = subprocess.run([*command, "-"], capture_output=True, check=True)
    gear(*words, str(gear.folder / "gear.tar"))
    assert done.stdout == (gear.folder / "gear.tar").read_bytes()
    assert b"app-gear:1: index " in done.stderr
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*command, "-"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 7
    assert done.stderr.endswith(
        b"gear: no room to write the archive to stdout (No space left on device)\n"
    )


def test_an_archive_can_come_through_a_pipe(gear: Gear) -> None:
    """
    `docker save app:1 | gear build --from - app:1`, or what a shell calls `<(...)`.
    """
    saved = gear.engine.images["app:1"]
    words = ["--json", "app:1"]
    command = [sys.executable, "-m", "gear_plugin", "--root", str(gear.folder / "root"), "build"]
    first = subprocess.run([*command, "--from", "-", *words], input=saved, stdout=-1, check=True)
    pipe = gear.folder / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(saved))
    writer.start()
    second = subprocess.run([*command, "--from", str(pipe), *words], stdout=-1, check=True)
    writer.join()
    results = [json.loads(done.stdout) for done in (first, second)]
    assert results[0]["gear_image_id"] == results[1]["gear_image_id"]
    assert [result["source"] for result in results] == ["-", str(pipe)]


def test_from_registry_to_registry(gear: Gear, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Build and push without an engine: the layer in the registry is the one that was built.
    """
    monkeypatch.setenv("DOCKER_CONFIG", str(gear.folder))
    gear.engine.images.clear()
    with serving(FakeRegistry()) as server:
        server.add("team/app", layouts.Image("1", [LAYER], CONFIG, "gzip"))
        name = f"{server.address}/team/app"
        built = json.loads(gear("build", "--from", "registry", "--json", f"{name}:1"))
        assert "pulling 1 layers (" in gear.stderr
        assert server.asked("PUT") == []
        pushed = json.loads(gear("push", "--json", f"{name}-gear:1"))
        assert (pushed["new_objects"], built["loaded"]) == (2, False)
        raw, kind = server.manifests["team/app-gear:1"]
        manifest = json.loads(raw)
        assert kind == manifest["mediaType"] == oci.DOCKER_MANIFEST
        (layer,) = manifest["layers"]
        config = manifest["config"]["digest"]
        assert config == built["gear_image_id"]
        plain = gzip.decompress(server.blobs[layer["digest"]])
        assert layouts.digest(plain) == built["layer"]
        assert json.loads(server.blobs[config])["rootfs"]["diff_ids"] == [built["layer"]]
        assert json.loads(server.blobs[config])["config"] == CONFIG["config"]
        gear("push", f"{name}-gear:1")
        assert len(server.asked("PUT", "uploads")) == 2
        assert "layer already exists" in gear.stderr


def test_another_name_in_a_registry(gear: Gear) -> None:
    """
    `docker://`, by digest here; the result is called as it is said.
    """
    image = layouts.Image("1", [LAYER], CONFIG, "gzip")
    with serving(FakeRegistry()) as server:
        server.add("team/app", image)
        place = f"docker://{server.address}/team/app@{layouts.digest(image.manifest)}"
        built = json.loads(gear("build", "--from", place, "--json", "mine:2"))
    assert (built["gear_image"], built["source"]) == ("mine-gear:2", place)


def test_the_platform_is_the_one_asked_for_else_the_engine_s(
    gear: Gear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Else that of this machine.
    """
    images = [
        layouts.Image("app:1", [LAYER], CONFIG | {"architecture": name})
        for name in ("amd64", "arm", "arm64", "riscv64")
    ]
    folder = layouts.as_folder(layouts.multi_platform("app:1", *images), gear.folder / "layout")

    def built(*words: str) -> str:
        return str(
            json.loads(gear("build", "--from", str(folder), "--json", *words, "app:1"))["platform"]
        )

    assert built("--platform", "linux/riscv64") == "linux/riscv64"
    assert built("--load") == "linux/arm"
    monkeypatch.setenv("DOCKER_HOST", "unix:///somewhere")
    assert built() == "linux/arm"
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setattr(wiring, "_DOCKER_SOCKET", Path("/nowhere"))
    assert built() == str(Platform.of_machine())


def test_an_engine_that_does_not_answer_has_no_say_in_the_platform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    It is not needed for anything else.
    """

    def down(config: Config) -> Any:
        raise EngineUnavailable("down")

    monkeypatch.setattr(wiring, "engine", down)
    assert wiring.platform(Config(docker_host="unix:///nowhere")) == Platform.of_machine()


def test_registries_are_reached_as_docker_reaches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Logins, insecure registries and proxies from where docker has them.
    """
    seen: list[RegistrySettings] = []
    monkeypatch.setattr("gear_plugin.jobs.Registry", seen.append)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    auth = base64.b64encode(b"me:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"a.example": {"auth": auth}}}))
    config = Config(insecure_registries="b.example:5000, 10.0.0.0/8", docker_etc=tmp_path)
    for text in ("", "{", "[]", '{"insecure-registries": "x"}'):
        (tmp_path / "daemon.json").write_text(text)
        wiring.registry(config)
        assert seen[-1].insecure == ["b.example:5000", "10.0.0.0/8"]
    (tmp_path / "daemon.json").write_text('{"insecure-registries": ["c.example"]}')
    wiring.registry(config)
    assert seen[-1].insecure == ["b.example:5000", "10.0.0.0/8", "c.example"]
    assert seen[-1].proxies["https"] == "http://proxy.example:3128"
    login = seen[-1].logins.of("a.example")
    assert login is not None
    assert login.user == "me"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("docker-archive:x.tar", r"takes the path alone \(x\.tar\)"),
        ("oci:folder:1", r"takes the path alone \(folder:1\)"),
        ("docker-daemon:app:1", "--from engine"),
        ("containers-storage:app", "skopeo copy containers-storage:app oci-archive:FILE"),
        ("https://reg.example/app", "wants `docker://REFERENCE`"),
        ("nosuch.tar", "no file nosuch.tar; --from takes"),
        ("n" * 5000, "no file n"),
        ("docker://Upper", "not an image name"),
        ("docker://app@sha256:1", "not an image's digest"),
    ],
)
def test_what_is_no_source_is_told_what_is(gear: Gear, place: str, words: str) -> None:
    """
    The spellings of other tools get a hint.
    """
    gear("build", "--from", place, "app:1", code=2)
    (line,) = gear.stderr.splitlines()
    assert re.match(rf"gear: .*{words}", line)


def test_stdout_takes_one_thing_only(gear: Gear) -> None:
    """
    An archive or JSON.
    """
    gear("build", "--output", "-", "--json", "app:1", code=2)
    assert "both want stdout" in gear.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["build", "--platform", "linux", "app:1"], 2),
        (["build", "--platform", "linux/s390x", "app:1"], 3),
        (["build", "--from", "registry", "127.0.0.1:9/app:1"], 7),
        (["build", "-o", "/nowhere/x.tar", "app:1"], 2),
        (["build", "nosuch:1"], 3),
        (["push", "app-gear:1"], 3),
        (["push", "app:1"], 2),
        (["build", "app@sha256:00"], 2),
    ],
)
def test_what_cannot_be_done_is_one_line(gear: Gear, words: list[str], code: int) -> None:
    """
    Nothing on stdout, and the code of EXIT_CODES.
    """
    assert gear(*words, code=code) == ""
    assert gear.stderr.splitlines()[-1].startswith("gear: ")
    assert "Traceback" not in gear.stderr

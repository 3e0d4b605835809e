"""`gear build`, `gear push` and `gear images`, over an engine in memory and a real store."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from gear_plugin import cli
from gear_plugin import log as logs
from gear_plugin.cli import wiring
from gear_plugin.config import Config
from gear_plugin.digest import Digest
from gear_plugin.errors import SourceUnavailable
from gear_plugin.jobs.engine_facts import EngineFacts
from gear_plugin.jobs.index_sources import take_index
from gear_plugin.layers import NodeImages
from gear_plugin.names import ImageId
from tests.unit.image.tars import tar
from tests.unit.jobs.fakes import FakeEngine
from tests.unit.jobs.saves import file, saved_by_20

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
    (gear.folder / "catalog.sqlite").touch()
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


@pytest.mark.parametrize(
    ("words", "code"),
    [
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

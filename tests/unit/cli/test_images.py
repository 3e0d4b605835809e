"""`gear build`, `gear push` and `gear images`, over an engine in memory and a real store."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gear_plugin import cli
from gear_plugin import log as logs
from gear_plugin.cli import wiring
from gear_plugin.config import Config
from gear_plugin.errors import SourceUnavailable
from tests.unit.image.tars import tar
from tests.unit.jobs.fakes import FakeEngine
from tests.unit.jobs.saves import file, saved_by_20

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


def test_images_is_a_table_of_what_was_pushed(gear: Gear) -> None:
    """
    One line an image under a header, in columns; built alone does not count.
    """
    gear("build", "app:1")
    header = gear("images")
    assert header.split() == ["IMAGE", "INDEX", "OBJECTS", "SIZE", "BUILT"]
    gear("push", "app-gear:1")
    titles, row = gear("images").splitlines()
    assert row.split()[0] == "app-gear:1"
    assert row[titles.index("OBJECTS") :].split()[:3] == ["2", "2", "kB"]


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

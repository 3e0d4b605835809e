"""`gear rm`, `gear gc` and `gear verify`, over a real store and catalog."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gear_plugin import cli
from gear_plugin import log as logs
from gear_plugin.catalog import open_roster
from gear_plugin.cli import wiring
from gear_plugin.cluster import Token
from gear_plugin.content import Cache, DirectoryStore
from gear_plugin.digest import Digest
from gear_plugin.names import ImageId
from tests.unit.cli.test_images import FACTS
from tests.unit.content.nodes import TOKEN, FakeNode, running
from tests.unit.jobs.pushing import Machine

ONE, TWO = ImageId.parse("app:1"), ImageId.parse("app:2")
SHARED, FIRST, SECOND = b"shared", b"of the first", b"of the second"


class Gear(Machine):
    """Two images that share a file, pushed; and the command in this process."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        super().__init__(folder, f"sqlite://{folder}/catalog.sqlite")
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        self.stderr = ""
        monkeypatch.setattr(wiring, "_ask_engine", lambda _config: FACTS)
        monkeypatch.setattr(logs, "setup", lambda *_: None)
        self.build(ONE, {"a": SHARED, "b": FIRST})
        self.build(TWO, {"a": SHARED, "b": SECOND})
        self.push(ONE)
        self.push(TWO)

    def __call__(self, *words: str, code: int = 0) -> str:
        """What it printed on stdout."""
        places = ["--root", str(self.root), "--store", str(self.store), "--catalog", self.catalog]
        self._monkeypatch.setattr(sys, "argv", ["gear", *places, *words])
        self._capfd.readouterr()
        ended: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            ended = end.code
        stdout, self.stderr = self._capfd.readouterr()
        assert ended == code, self.stderr
        return stdout

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))

    def path(self, content: bytes) -> Path:
        return self.store / "objects" / Digest.of(content).shard_path


@pytest.fixture
def gear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Gear:
    return Gear(tmp_path, monkeypatch, capfd)


def test_remove_and_collect(gear: Gear) -> None:
    """
    The one says that the other frees what is left; shared objects stay.
    """
    out = gear("rm", "app-gear:1")
    assert out == (
        "app-gear:1: removed from the catalog and the build folder; "
        "its 2 objects (18 B) are still stored\n"
    )
    assert "gear gc" in gear.stderr
    assert gear.stored() == 3
    assert gear("gc").startswith("removed: 0 objects, 0 B; kept: 2 objects, 19 B, for 1 images; ")
    assert "stored in the last 24 h: 1 objects, 12 B" in gear("gc")
    assert gear("gc", "--grace", "0", "--dry-run").startswith("would be removed: 1 objects, 12 B")
    assert gear.stored() == 3
    assert gear("gc", "--grace", "0").startswith("removed: 1 objects, 12 B; kept: 2 objects")
    assert not gear.path(FIRST).exists()
    gear.check(TWO)


def test_several_are_removed_whatever_is_wrong_with_one(gear: Gear) -> None:
    """
    As docker's rm does; the original's name does too.
    """
    out = gear("rm", "app-gear:1", "nobody-gear:1", "app:2", code=3)
    assert [line.partition(":")[0] for line in out.splitlines()] == ["app-gear", "app-gear"]
    assert "no image nobody-gear:1" in gear.stderr
    assert json.loads(gear("images", "--json")) == []
    gear("rm", "app-gear:1", "app-gear:2", code=1)
    assert gear.stderr.count("gear: no image app-gear") == 2
    assert json.loads(gear("rm", "--json", "app-gear:1", code=3)) == []


def test_results_as_json(gear: Gear) -> None:
    """
    All that people are told, and nothing else on stdout.
    """
    (removed,) = gear.json("rm", "app-gear:1")
    assert removed == {
        "image": "app:1",
        "gear_image": "app-gear:1",
        "record": True,
        "build": True,
        "objects": 2,
        "size_bytes": 18,
    }
    done = gear.json("gc", "--grace", "0s")
    assert (done["removed_objects"], done["removed_bytes"], done["dry_run"]) == (1, 12, False)
    verified = gear.json("verify")
    assert (verified["objects"], verified["problems"]) == (2, [])


@pytest.mark.parametrize("grace", ["1", "24", "1.5h", "-1h", "h", ""])
def test_a_grace_without_a_unit_is_refused(gear: Gear, grace: str) -> None:
    """
    Nobody should have to guess.
    """
    gear("gc", "--grace", grace, code=2)
    assert "is not a time such as 90s" in gear.stderr
    assert gear.json("gc", "--grace", "7d")["recent_objects"] == 0


def test_the_catalog_must_be_there_and_name_something(gear: Gear) -> None:
    """
    With the wrong catalog everything would be garbage; and looking makes none.
    """
    right, gear.catalog = gear.catalog, f"sqlite://{gear.folder}/other.sqlite"
    gear("gc", "--grace", "0", code=2)
    assert not (gear.folder / "other.sqlite").exists()
    gear("rm", "never-gear:1", code=3)
    assert not (gear.folder / "other.sqlite").exists()
    gear.catalog = right
    gear("rm", "app:1", "app:2")
    gear("gc", "--grace", "0", code=4)
    assert "--everything" in gear.stderr
    assert gear.stored() == 3
    assert gear.json("gc", "--grace", "0", "--everything")["removed_objects"] == 3


def test_a_store_that_is_not_there_is_not_made(gear: Gear) -> None:
    """
    One line, and the code for what is not available.
    """
    gear.store = gear.folder / "elsewhere"
    gear("gc", code=7)
    gear("verify", code=7)
    assert "is it mounted?" in gear.stderr
    assert not gear.store.exists()


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"damaged")


def test_verify_finds_and_repairs_from_this_machine(gear: Gear) -> None:
    """
    From the build folder or a cache; the exit code says whether all is well.
    """
    assert gear("verify").startswith(f"store {gear.store}: 3 objects, 31 B; 0 of them not as")
    damage(gear.path(FIRST))
    gear.path(SHARED).unlink()
    out = gear("verify", code=1)
    assert f"damaged: {Digest.of(FIRST)} in {gear.path(FIRST)}, of app-gear:1\n" in out
    assert f"missing: {Digest.of(SHARED)} in store {gear.store}, of app-gear:1, app-gear:2\n" in out
    gear("verify", "app-gear:2", code=1)
    out = gear("verify", "--repair")
    assert out.count(" -> replaced\n") == 2
    assert list(gear.store.glob("damaged/*/*")) == []
    gear.check(ONE, TWO)
    gear("verify", "nobody-gear:1", code=3)


def test_verify_repairs_from_a_cache(gear: Gear) -> None:
    """
    Of a node of this machine.
    """
    cache, image = Cache(gear.root, 0), Digest.of(b"image")
    cache.admit(image)
    cache.publish(image, Digest.of(FIRST), iter([FIRST]))
    gear("rm", "app:2")
    for path in gear.root.glob("build/*/files/*/*"):
        os.unlink(path)
    damage(gear.path(FIRST))
    (problem,) = gear.json("verify", "--repair", "app:1")["problems"]
    assert (problem["action"], problem["images"]) == ("replaced", ["app-gear:1"])
    with DirectoryStore(gear.store).read(Digest.of(FIRST)) as chunks:
        assert b"".join(chunks) == FIRST


@pytest.fixture
def nodes(gear: Gear) -> Iterator[list[FakeNode]]:
    """Two in a cluster, and one that is dead, of which nothing here knows."""
    with pytest.MonkeyPatch.context() as patch, running(2) as found:
        patch.setattr(Token, "new", lambda: TOKEN)
        with closing(open_roster(gear.catalog, timeout_s=5)) as roster:
            roster.identity()
            for node in found:
                roster.join(node.member.node, node.address)
            roster.join("d" * 32, "127.0.0.1:1")
        yield found


def test_verify_repairs_from_the_nodes(gear: Gear, nodes: list[FakeNode]) -> None:
    """
    Whichever has it, and only if it has it; what one says is not believed.
    """
    bad, good = nodes
    bad.answer = lambda request, _digest: request.send(b"wrong")
    good.put(FIRST)
    for path in gear.root.glob("build/*/files/*/*"):
        os.unlink(path)
    damage(gear.path(FIRST))
    damage(gear.path(SECOND))
    problems = {
        p["digest"]: p["action"] for p in gear.json("verify", "--repair", code=1)["problems"]
    }
    assert problems == {
        str(Digest.of(FIRST)): "replaced",
        str(Digest.of(SECOND)): "moved aside",
    }
    assert gear.path(FIRST).read_bytes() == FIRST
    assert f"/download/{Digest.of(FIRST)}?cached=1" in good.requests


def test_verify_asks_no_node_without_need(gear: Gear, nodes: list[FakeNode]) -> None:
    damage(gear.path(FIRST))
    (problem,) = gear.json("verify", "--repair")["problems"]
    assert problem["action"] == "replaced"  # from the build folder
    assert [node.requests for node in nodes] == [[], []]


def test_verify_makes_no_cluster(gear: Gear) -> None:
    """
    Where there is none; a token is made by who asks for it first.
    """
    gear.path(FIRST).unlink()
    for path in gear.root.glob("build/*/files/*/*"):
        os.unlink(path)
    gear("verify", "--repair", code=1)
    with (
        closing(open_roster(gear.catalog, timeout_s=5)) as roster,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(Token, "new", lambda: TOKEN)
        assert roster.identity() == TOKEN


def test_verify_of_a_cache(gear: Gear) -> None:
    """
    Damaged entries are removed, so that they are fetched again.
    """
    gear("verify", "--cache", code=7)
    assert "no node of this machine has a cache" in gear.stderr
    cache, image = Cache(gear.root, 0), Digest.of(b"image")
    cache.admit(image)
    for content in (FIRST, SECOND):
        cache.publish(image, Digest.of(content), iter([content]))
    assert gear.json("verify", "--cache")["objects"] == 2
    damage(cache.path(Digest.of(FIRST)))
    gear("verify", "--cache", code=1)
    assert gear.json("verify", "--cache", "app-gear:2")["problems"] == []
    (problem,) = gear.json("verify", "--cache", "--repair", "app-gear:1")["problems"]
    assert problem["action"] == "removed"
    assert not cache.link(image, Digest.of(FIRST))
    assert gear.json("verify", "--cache")["objects"] == 1

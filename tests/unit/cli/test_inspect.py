"""`gear inspect` and `gear restore`, as a user types them."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gear_plugin.cli import listing, wiring
from gear_plugin.config import Config
from gear_plugin.digest import Digest
from gear_plugin.errors import EngineUnavailable
from gear_plugin.image import Inode, Kind, Tree
from gear_plugin.jobs.engine_facts import EngineFacts
from gear_plugin.names import ImageId
from tests.unit.cli.test_images import FACTS, LAYER, Gear, gear, install  # noqa: F401 - a fixture
from tests.unit.image.tars import info, tar
from tests.unit.image.trees import file as tree_file
from tests.unit.image.trees import tree_of
from tests.unit.jobs.saves import CONFIG, file, saved_by_20

GEAR_IMAGE = ImageId.parse("app-gear:1")


@pytest.fixture
def built(gear: Gear) -> Gear:  # noqa: F811
    """app-gear:1 was built here."""
    gear("build", "app:1")
    return gear


def test_inspect_tells_everything(built: Gear) -> None:
    """
    Name, totals, index, what is cached and built, configuration: one fact a line.
    """
    install(built, b"other")
    shown = built("inspect", "app-gear:1")
    lines = [line.strip() for line in shown.splitlines()]
    assert lines[0] == "app-gear:1"
    facts = dict(line.split(":", 1) for line in lines[1:])
    assert facts["Original"].strip().startswith("app:1 (sha256:")
    assert facts["Platform"].strip() == "linux/amd64"
    assert facts["Found in"].strip() == f"node {built.folder}/root"
    assert facts["Files"].strip() == "3 files, 1 directories, 0 other"
    assert facts["Objects"].strip() == "2, 2 kB"
    assert facts["Cached here"].strip() == "1 of 2 objects, 5 B (0 %)"
    assert (facts["Built here"].strip(), facts["Pushed"].strip()) == ("yes", "no")
    assert json.loads(facts["Env"]) == CONFIG["config"]["Env"]
    assert json.loads(facts["User"]) == "1000:1000"


def test_inspect_json(built: Gear) -> None:
    """
    All of it, the whole configuration included; the places agree on the index.
    """
    found = json.loads(built("inspect", "app-gear:1", "--json"))
    assert (found["gear_image"], found["image"]) == ("app-gear:1", "app:1")
    assert (found["files"], found["objects"], found["object_bytes"]) == (3, 2, 2005)
    assert (found["cached_objects"], found["large_objects"], found["profile"]) == (None, [], [])
    assert (found["built"], found["pushed"]) == (found["index"], None)
    built("push", "app-gear:1")
    assert json.loads(built("inspect", "app-gear:1", "--json"))["pushed"] == found["index"]
    assert {
        **found["config"],
        "rootfs": None,
        "history": None,
    } == {**CONFIG, "rootfs": None, "history": None}


@pytest.mark.parametrize(
    ("place", "name"),
    [("node", "node "), ("build", "build in "), ("engine", "Docker engine")],
)
def test_the_place_can_be_chosen(built: Gear, place: str, name: str) -> None:
    """
    Each has the same index; one that has it not is not passed over then.
    """
    install(built)
    found = json.loads(built("inspect", "app-gear:1", "--json", "--from", place))
    assert found["found_in"].startswith(name)
    built("inspect", "other-gear:1", "--from", place, code=3)


def test_another_index_in_the_build_folder_shows(built: Gear) -> None:
    """
    Whoever wonders why a node shows old files looks here.
    """
    install(built)
    built.engine.images["app:1"] = saved_by_20("app:1", [tar(file("a", b"newer"))])
    built("build", "app:1")
    assert "yes, but another index: sha256:" in built("inspect", "app-gear:1")


def test_without_the_catalog_the_rest_is_told(built: Gear) -> None:
    """
    On stderr why, and "unknown" instead of a guess.
    """
    (built.folder / "catalog.sqlite").write_bytes(b"no catalog" * 1000)
    assert "Pushed:         unknown" in built("inspect", "app-gear:1")
    assert built.stderr.startswith("gear: not known whether it was pushed: ")


def test_files_are_listed_as_ls_does(gear: Gear) -> None:  # noqa: F811
    """
    Mode, owner, size, time, digest, path; one line each whatever is in a name.
    """
    odd: list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]] = [
        info("d", type=tarfile.DIRTYPE, mode=0o1777, mtime=86400),
        (info("d/two\nlines\\", mode=0o4755, uid=33, gid=7, mtime=1.5), b"x"),
        (info(os.fsdecode(b"latin-\xe9")), b""),
        info("link", type=tarfile.SYMTYPE, linkname="d/\x1b"),
        info("null", type=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
        info("pipe", type=tarfile.FIFOTYPE),
    ]
    layer = tar(*odd, format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape")
    gear.engine.images["app:1"] = saved_by_20("app:1", [layer])
    gear("build", "app:1")
    lines = gear("inspect", "app-gear:1", "--files").splitlines()
    rows = {line.split(None, 6)[6]: line.split(None, 6)[:6] for line in lines}
    digest = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    assert rows["/d"] == ["drwxrwxrwt", "0", "0", "0", "1970-01-02T00:00:00Z", "-"]
    two = rows["/d/two\\x0alines\\\\"]
    assert two == ["-rwsr-xr-x", "33", "7", "1", "1970-01-01T00:00:01Z", digest]
    assert "/latin-\\xe9" in rows
    assert rows["/null"][3] == "1,3"
    assert rows["/pipe"][0].startswith("p")
    assert "/link -> d/\\x1b" in rows
    assert next(iter(rows)) == "/"


def test_files_as_json(gear: Gear) -> None:  # noqa: F811
    """
    One object a path: hard links say of what, xattrs are base64, odd bytes survive.
    """
    capable = info("a", pax_headers={"SCHILY.xattr.user.k": "v\n"})
    layer = tar(
        (capable, b"content"),
        info("b", type=tarfile.LNKTYPE, linkname="a"),
        format=tarfile.PAX_FORMAT,
    )
    gear.engine.images["app:1"] = saved_by_20("app:1", [layer])
    gear("build", "app:1")
    root, a, b = json.loads(gear("inspect", "app-gear:1", "--files", "--json"))
    assert (root["path"], root["type"], root["digest"]) == ("/", "directory", None)
    assert a == {
        "path": "/a",
        "type": "regular file",
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "mtime_ns": 0,
        "size_bytes": 7,
        "digest": str(Digest.of(b"content")),
        "target": None,
        "device": None,
        "same_as": None,
        "xattrs": {"user.k": "dgo="},
    }
    assert b == {**a, "path": "/b", "same_as": "/a"}


def test_odd_names_survive_json(capsys: pytest.CaptureFixture[str]) -> None:
    """
    Bytes that are not UTF-8 come back through Python's surrogate escapes.
    """
    inode = tree_file(b"x")
    inode.mtime_ns = -(2**62)
    device = Inode(Kind.BLOCK, 0o600, 0, 0, 2**62 * 4, major=8, minor=1)
    listing.show(tree_of({b"\xff": inode, b"dev": device}), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [os.fsencode(entry["path"]) for entry in found] == [b"/", b"/dev", b"/\xff"]
    assert found[1]["device"] == [8, 1]


def test_times_beyond_any_calendar_are_shown() -> None:
    """
    A hostile index may hold any 64 bits.
    """
    inode = tree_file(b"x")
    inode.mtime_ns = 2**62 * 10**9
    tree: Tree = tree_of({b"f": inode})
    assert any(f"@{2**62}" in line for line in listing.lines(tree))


def test_restore_says_what_it_made(built: Gear) -> None:
    """
    One line, or JSON; the engine has the image, under the name that was asked for.
    """
    (line,) = built("restore", "app-gear:1", "--name", "back:1").splitlines()
    assert line.startswith("back:1 in the engine: 3 files in 2 objects, ")
    done = json.loads(built("restore", "app-gear:1", "--name", "again", "--json"))
    assert (done["image"], done["output"], done["objects"]) == ("again:latest", None, 2)
    assert {"back:1", "again:latest"} <= set(built.engine.images)


def test_restore_into_a_file_needs_no_engine(
    built: Gear, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """
    Named as the original.
    """
    kill_engine(monkeypatch)
    out = tmp_path / "out.tar"
    (line,) = built("restore", "app-gear:1", "-o", str(out)).splitlines()
    assert line.startswith(f"app:1 in {out}: ")
    built.engine.images.clear()
    built.engine.load(out)
    assert list(built.engine.images) == ["app:1"]


def kill_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine answers."""

    def refuse(_config: Config) -> EngineFacts:
        raise EngineUnavailable("no Docker engine answers at unix:///d: Connection refused")

    monkeypatch.setattr(wiring, "_ask_engine", refuse)


def test_restore_without_an_engine_does_nothing(
    built: Gear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It ends at once, before a file is read.
    """
    kill_engine(monkeypatch)
    assert built("restore", "app-gear:1", "--name", "back:1", code=7) == ""
    reason = "no Docker engine answers at unix:///d: Connection refused"
    assert built.stderr == f"gear: {reason}; without one, --output FILE\n"


def test_restore_falls_back_on_the_store(built: Gear) -> None:
    """
    The build's files are gone; the store has them.
    """
    built("push", "app-gear:1")
    install(built)
    for path in (built.folder / "root" / "build" / "app=1" / "files").rglob("*"):
        if path.is_file():
            path.unlink()
    built("restore", "app-gear:1", "--name", "back:1")


def lose(built: Gear, content: bytes) -> Path:
    """Remove a file from the build folder; its path."""
    digest = Digest.of(content)
    path = built.folder / "root" / "build" / "app=1" / "files" / digest.shard_path
    path.unlink()
    return path


def no_store(built: Gear) -> None:
    lose(built, b"other")


def unmounted_store(built: Gear) -> None:
    lose(built, b"other")
    (built.folder / "store").mkdir()


def incomplete_store(built: Gear) -> None:
    lose(built, b"other")
    (built.folder / "store" / "objects").mkdir(parents=True)


def wrong_bytes(built: Gear) -> None:
    incomplete_store(built)
    path = built.folder / "store" / "objects" / Digest.of(b"other").shard_path
    path.parent.mkdir()
    path.write_bytes(b"wrong")


def damaged_index(built: Gear) -> None:
    index = built.folder / "root" / "build" / "app=1" / "build" / "index.tar"
    index.write_bytes(index.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (no_store, 7, "is it mounted?"),
        (unmounted_store, 7, "is it mounted?"),
        (incomplete_store, 3, "has no object sha256:"),
        (wrong_bytes, 5, "has wrong bytes for sha256:"),
    ],
)
def test_restore_without_an_object(built: Gear, damage: object, code: int, words: str) -> None:
    """
    The last line on stderr says which and why; the engine is as it was.
    """
    assert callable(damage)
    damage(built)
    before = set(built.engine.images)
    assert built("restore", "app-gear:1", "--name", "back:1", code=code) == ""
    last = built.stderr.splitlines()[-1]
    assert last.startswith("gear: ") and words in last
    assert set(built.engine.images) == before


@pytest.mark.parametrize("command", ["inspect", "restore"])
def test_a_damaged_index_is_5(built: Gear, command: str) -> None:
    """
    Where it was, and what to do; with the engine's copy it works.
    """
    damaged_index(built)
    built.engine.images.pop("app-gear:1")
    assert built(command, "app-gear:1", code=5) == "" or command == "inspect"
    assert "index.tar is not what was built; run `gear build app:1` again" in built.stderr


def test_a_damaged_build_is_passed_over_with_a_warning(built: Gear) -> None:
    """
    The engine has a sound copy of the index.
    """
    damaged_index(built)
    assert "Docker engine" in built("inspect", "app-gear:1")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["inspect", "nosuch-gear:1"], 3),
        (["inspect", "app:1"], 2),
        (["inspect", "UPPER-gear"], 2),
        (["inspect", "app-gear:1", "--from", "moon"], 2),
        (["inspect", "127.0.0.1:1/app-gear:1", "--from", "registry"], 7),
        (["restore", "nosuch-gear:1", "--name", "x"], 3),
        (["restore", "app-gear:1"], 4),
        (["restore", "app-gear:1", "--name", "x-gear"], 2),
        (["restore", "app-gear:1", "--name", "UPPER"], 2),
        (["restore", "app-gear:1", "-o", "/nowhere/x.tar"], 2),
        (["restore", "app-gear:1", "-o", "/tmp"], 2),
        (["restore", "app-gear:1", "-o", "x.tar", "--replace"], 2),
        (["restore", "app-gear:1", "-o", "-"], 2),
    ],
)
def test_what_cannot_be_done_is_one_line(built: Gear, words: list[str], code: int) -> None:
    """
    Nothing on stdout, no traceback, and the code of EXIT_CODES.
    """
    assert built(*words, code=code) == ""
    assert "Traceback" not in built.stderr
    assert built.stderr.splitlines()[-1].startswith(("gear: ", "Error: "))


@contextmanager
def unprivileged() -> Iterator[None]:
    """This process as nobody, until the block ends."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.root
def test_what_only_root_can_read_says_so(built: Gear) -> None:
    """
    Not "no such image", and no traceback.
    """
    if os.geteuid():
        pytest.skip("needs root to become somebody else")
    install(built)
    built.engine.images.pop("app-gear:1")
    for folder in [built.folder, *built.folder.parents]:
        if "pytest" in str(folder):
            folder.chmod(0o755)
    (built.folder / "root" / "images").chmod(0o700)
    (built.folder / "root" / "build" / "app=1").chmod(0o700)
    with unprivileged():
        built("inspect", "app-gear:1", code=7)
        assert "run it as root" in built.stderr
        built("images", "--local")
        assert built.stderr.count("run it as root") == 2

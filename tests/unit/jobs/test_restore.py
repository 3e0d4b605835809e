"""
The property that everything stands on: an image's tree and files say exactly
what extracting its layers, one after another, would have left on disk.
"""

from __future__ import annotations

import copy
import os
import shutil
import stat
import tarfile
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gear_plugin.image import INDEX_NAME, Kind, Tree, read_erofs
from gear_plugin.jobs import BuildFolder, build
from gear_plugin.names import ImageId
from tests.unit.image.tars import info, tar
from tests.unit.jobs import saves
from tests.unit.jobs.fakes import FakeEngine, Recorder

IMAGE = ImageId.parse("app:1")
Snapshot = dict[str, tuple[Any, ...]]

_folders = st.sampled_from(["a", "b", "a/c"])
_leaves = st.builds("{}/{}".format, _folders, st.sampled_from(["x", "y", "z"]))
_owner = {"uid": os.getuid(), "gid": os.getgid()}
_mtimes = st.integers(0, 2**33).map(lambda quarters: quarters / 4)
_contents = st.binary(max_size=5) | st.integers(0, 3).map(lambda n: b"%d" % n * 1500)

_folder = st.builds(
    lambda path, mode: info(path, type=tarfile.DIRTYPE, mode=mode | 0o700, **_owner),
    _folders,
    st.integers(0, 0o7777),
)
_file = st.builds(
    lambda path, mode, mtime, content: (info(path, mode=mode, mtime=mtime, **_owner), content),
    _leaves,
    st.integers(0, 0o7777),
    _mtimes,
    _contents,
)
_symlink = st.builds(
    lambda path, target: info(path, type=tarfile.SYMTYPE, linkname=target, mode=0o777, **_owner),
    _leaves,
    st.sampled_from(["x", "../b/y", "/nowhere"]),
)
_whiteout = st.builds(
    lambda path: (info(f"{Path(path).parent}/.wh.{Path(path).name}"), b""), _leaves | _folders
)
_opaque = st.builds(lambda path: (info(f"{path}/.wh..wh..opq"), b""), _folders)


class Layer:
    """A layer's tar, shown as the list of what is in it."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __repr__(self) -> str:
        with tarfile.open(fileobj=BytesIO(self.data)) as archive:
            return repr([(m.name, m.type, m.linkname, oct(m.mode), m.size) for m in archive])


_Entry = tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]


def _hard_link(path: str, target: _Entry, mode: int, mtime: float) -> tarfile.TarInfo:
    """With metadata of its own, which counts for all names of the file once it is unpacked."""
    assert isinstance(target, tuple)
    found = copy.copy(target[0])
    found.name, found.type, found.size = path, tarfile.LNKTYPE, 0
    found.linkname, found.mode, found.mtime = target[0].name, mode, mtime
    return found


@st.composite
def _layer(draw: st.DrawFn) -> Layer:
    """Each path once, hard links after what they link to, folders before what is in them."""
    drawn = draw(st.lists(_folder | _file | _file | _symlink | _whiteout | _opaque, max_size=8))
    entries: dict[str, _Entry] = {}
    for entry in drawn:
        entries[entry[0].name if isinstance(entry, tuple) else entry.name] = entry
    files = [n for n, e in entries.items() if isinstance(e, tuple) and ".wh." not in n]
    ordered = [entries[name] for name in sorted(entries)]
    if files:
        target = draw(st.sampled_from(sorted(files)))
        for path in draw(st.lists(_leaves, max_size=2, unique=True)):
            if path not in entries:
                mode, mtime = draw(st.integers(0, 0o7777)), draw(_mtimes)
                ordered.append(_hard_link(path, entries[target], mode, mtime))
    return Layer(tar(*ordered, format=tarfile.PAX_FORMAT))


def extract(layer: bytes, root: Path) -> None:
    """
    A layer over what is there, as the OCI image-spec's layer.md says, with tarfile.

    docker unpacks it into a folder of its own, where a directory that it uses
    and does not name is made with mode 0755.
    """
    with tarfile.open(fileobj=BytesIO(layer)) as archive:
        members = archive.getmembers()
        named = {member.name for member in members if member.isdir()}
        for member in members:
            path = root / member.name
            for parent in path.relative_to(root).parents[:-1]:
                if str(parent) not in named and (root / parent).is_dir():
                    (root / parent).chmod(0o755)
            if path.name == ".wh..wh..opq":
                for child in path.parent.iterdir() if path.parent.is_dir() else ():
                    remove(child)
            elif path.name.startswith(".wh."):
                remove(path.with_name(path.name.removeprefix(".wh.")))
        for member in members:
            path = root / member.name
            if path.name.startswith(".wh."):
                continue
            for parent in reversed(path.relative_to(root).parents):
                if not (root / parent).exists():
                    (root / parent).mkdir()
                    (root / parent).chmod(0o755)
            if not member.isdir():
                remove(path)
            archive.extract(member, root, numeric_owner=True)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def on_disk(root: Path) -> Snapshot:
    """Every path below *root*; times of folders and symlinks are not compared."""
    found: Snapshot = {}
    first: dict[int, str] = {}
    for path in sorted(root.rglob("*"), key=os.fsencode):
        name, state = str(path.relative_to(root)), path.lstat()
        mode = stat.S_IMODE(state.st_mode)
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_dir():
            found[name] = ("dir", mode)
        else:
            same = first.setdefault(state.st_ino, name)
            found[name] = ("file", mode, state.st_mtime_ns, path.read_bytes(), same)
    return found


def in_gear(tree: Tree, files: Path) -> Snapshot:
    """The same from an index and the build's files."""
    found: Snapshot = {}
    first: dict[Any, str] = {}
    for path, node in sorted(tree.walk(), key=lambda entry: entry[0]):
        name = path.decode()
        if node.kind is Kind.SYMLINK:
            found[name] = ("link", node.target.decode())
        elif node.kind is Kind.DIR:
            found[name] = ("dir", node.mode)
        else:
            same = first.setdefault(node, name)
            content = (files / node.digest.shard_path).read_bytes() if node.digest else b""
            assert len(content) == node.size
            found[name] = ("file", node.mode, node.mtime_ns, content, same)
    del found[""]
    return found


@given(
    layers=st.lists(_layer(), max_size=4),
    save=st.sampled_from([saves.saved_by_20, saves.saved_by_25]),
)
@settings(max_examples=60, deadline=None)
def test_tree_and_files_are_what_extracting_the_layers_gives(
    layers: list[Layer], save: Any
) -> None:
    """
    Paths, kinds, modes, times, contents, link targets and hard links.
    """
    with TemporaryDirectory() as folder:
        extracted = Path(folder) / "extracted"
        extracted.mkdir()
        for layer in layers:
            extract(layer.data, extracted)
        engine = FakeEngine({str(IMAGE): save(str(IMAGE), [layer.data for layer in layers])})
        build(IMAGE, engine, Path(folder), Recorder())
        index = saves.unpack(engine.layer(IMAGE.gear))[INDEX_NAME]
        made = BuildFolder.of(Path(folder), IMAGE)
        assert in_gear(read_erofs(index), made.files) == on_disk(extracted)

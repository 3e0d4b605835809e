"""
A node without docker or daemons: real mounts of a small image, plain folders
in the place of the FUSE layer, the image's objects in its cache.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.errors import ImageNotFound
from gear_plugin.image import FOLDER, INDEX_NAME, MANIFEST_NAME, Directory, Inode, Kind, Tree
from gear_plugin.layers import (
    ImageKeepers,
    LayerStore,
    NodeImages,
    VolumeImages,
    VolumeStore,
    check_layer,
    mounted_images,
)
from gear_plugin.layers.checker import Checker
from gear_plugin.names import ImageId
from gear_plugin.rootfs import LazyLayer, Plan, Views, Way, mounts, unmount
from tests.unit.image.indexes import index
from tests.unit.image.trees import file

NAME = ImageId.parse("library/nginx-gear:1.25")
FILES = {b"etc/passwd": b"root\n", b"srv/www/index.html": b"hello\n", b"srv/note": b"note\n"}
ROOT = Directory(mode=0o711, uid=7, gid=8, mtime_ns=1_600_000_000 * 10**9)
WWW = Directory(mode=0o750, uid=33, gid=34, mtime_ns=1_500_000_000 * 10**9)
"""What `/` and `srv/www` look like."""


def small_tree() -> Tree:
    """FILES, links that lead to a folder in several ways, an owner for `srv/www`."""
    index_html = file(FILES[b"srv/www/index.html"])
    www = replace(WWW, children={b"index.html": index_html})
    srv = Directory(children={b"www": www, b"note": file(FILES[b"srv/note"])})
    etc = Directory(
        children={b"passwd": file(FILES[b"etc/passwd"]), b"up": _link(b"../../../srv/www")}
    )
    links = {b"absolute": b"/srv//www/.", b"out": b"/etc/none", b"loop": b"loop"}
    top = {b"etc": etc, b"srv": srv, **{name: _link(to) for name, to in links.items()}}
    return Tree(replace(ROOT, children=top))


class ImageNode:
    """The stores of a node below *base* that has the small image at hand."""

    def __init__(self, base: Path, way: Way) -> None:
        self.root, self.run = base / "gear", base / "run"
        self.base, self.way = base, way
        tree = small_tree()
        self.erofs, self.manifest = index(tree, chunks={}, profile=())
        self.image = Digest.of(self.erofs).hex
        self.forgotten: list[str] = []
        self.asked = 0
        self.supply = True
        """Whether the image is to be had."""
        self._fuse(base / "fuse")
        self._checker = _checker(base / "checked")
        self.open()

    def open(self) -> None:
        """Make the stores, as a new process would."""
        self.images = NodeImages(self.root, checker=self._checker)
        self.views = Views(
            self.run,
            self.root,
            Plan(self.way, loop_index=False, available=(self.way,)),
            LazyLayer(self.run),
            index_file=self.images.index_file,
            admit=self._admit,
            wait_s=5,
        )
        self.keepers = ImageKeepers(self.root, self.images, self.views, self.forgotten.append)
        self.layers = LayerStore(self.root, self.images, self.views, self.keepers)
        shows = VolumeImages(self.root, self.images, self.views, self.keepers, self._take_in)
        self.volumes = VolumeStore(self.root, shows, self.keepers, release_s=0.2)

    def installed(self) -> list[str]:
        """The images that are on the node."""
        return list(self.images)

    def mounted(self) -> set[str]:
        """The images that are in use."""
        return mounted_images(self.root)

    def points(self) -> list[str]:
        """What is mounted below the root, as paths below it."""
        return [str(p.relative_to(self.root)) for p, _ in mounts() if self.root in p.parents]

    def close(self) -> None:
        """Leave no mount."""
        for point in [point for point, _ in mounts()][::-1]:
            if self.base in point.parents:
                unmount(point, lazy=True)

    def _take_in(self, image: ImageId, note: Callable[[str], bool]) -> str:
        self.asked += 1
        if image != NAME or not self.supply:
            raise ImageNotFound(f"no Gear image {image}")
        if not note(self.image):
            with self.images.scratch() as folder:
                _unpack(folder / "layer", self.erofs, self.manifest.encode())
                self.images.install(folder / "layer")
        return self.image

    def _admit(self, image: str) -> None:
        private = self.root / "private" / image
        for content in FILES.values():
            for layer in (self.root / "public", private):
                path = layer / Digest.of(content).shard_path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def _fuse(self, point: Path) -> None:
        """What a FUSE daemon would show: no object, and the whole tree."""
        (point / "objects" / self.image).mkdir(parents=True)
        (point / "error").mkdir()
        tree = point / "trees" / self.image
        for path, content in FILES.items():
            target = tree / os.fsdecode(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        (tree / "srv/www").chmod(WWW.mode)
        shutil.chown(tree / "srv/www", WWW.uid, WWW.gid)
        self.run.mkdir()
        state = {"number": 1, "pid": os.getpid(), "mountpoint": str(point)}
        (self.run / "fuse.json").write_text(json.dumps(state))


def _checker(folder: Path) -> Checker:
    """A structure check that says of the small image what the real one said, in less time."""
    folder.mkdir()
    table, answer = _checked()
    (folder / "table").write_bytes(table)
    (folder / "answer").write_text(answer)
    # Its arguments are a JSON list on one line: layer, table, limits.
    script = """IFS='"' read -r _ _ _ table _; cp "$0/table" "$table" && cat "$0/answer\""""
    return Checker(command=("sh", "-c", script, str(folder)))


@functools.cache
def _checked() -> tuple[bytes, str]:
    """The small image's object table, and what the check says."""
    with tempfile.TemporaryDirectory() as folder:
        layer, table = Path(folder), Path(folder) / "table"
        _unpack(layer, *small_index())
        answer = check_layer(layer, table)
        return table.read_bytes(), json.dumps(answer)


def small_index() -> tuple[bytes, bytes]:
    """The small image's index.erofs, and its manifest."""
    erofs, manifest = index(small_tree(), chunks={}, profile=())
    return erofs, manifest.encode()


def _unpack(layer: Path, erofs: bytes, manifest: bytes) -> None:
    (layer / FOLDER).mkdir(parents=True)
    (layer / INDEX_NAME).write_bytes(erofs)
    (layer / MANIFEST_NAME).write_bytes(manifest)


def _link(target: bytes) -> Inode:
    return Inode(Kind.SYMLINK, 0o777, 0, 0, 0, target=target)

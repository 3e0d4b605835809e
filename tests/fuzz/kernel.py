"""
Damaged indexes that the reader accepts, mounted: the kernel must see what the reader sees.

The reader decides what a kernel is shown, so it must not accept an image
that the kernel takes for something else.  A case is made from one number.
"""

from __future__ import annotations

import os
import random
import stat
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gear_plugin.digest import Digest
from gear_plugin.errors import IndexDamaged
from gear_plugin.image import Directory, Inode, Kind, Tree, read_erofs, write_erofs
from gear_plugin.image.erofs_format import DIRENT, INODE
from gear_plugin.rootfs import mount_index, unmount
from tests.fuzz import repair
from tests.fuzz.run import mutated
from tests.unit.image.damage import ROOT_NID, entries
from tests.unit.image.trees import file

_BITS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIR: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
_SLOT = 32
_BLOCK = 4096


def random_tree(chance: random.Random) -> Tree:
    """A small tree with something of everything."""
    tree = Tree()
    folders = [tree.root]
    leaves: list[Inode] = []
    for _ in range(chance.randint(1, 25)):
        folder = chance.choice(folders)
        name = bytes(chance.choice(b"abcdef.~\xff") for _ in range(chance.choice((1, 2, 3, 200))))
        if name in (b".", b"..") or name in folder.children:
            continue
        node = _random_inode(chance, leaves)
        folder.children[name] = node
        if isinstance(node, Directory):
            folders.append(node)
        else:
            leaves.append(node)
    return tree


def _random_inode(chance: random.Random, leaves: list[Inode]) -> Inode:
    common = (chance.choice((0o644, 0o4755, 0o1777)), chance.choice((0, 1000)), 0,
              chance.randrange(2 * 10**18))  # fmt: skip
    xattrs = {b"trusted.%d" % n: chance.randbytes(chance.choice((0, 3, 300, 3000)))
              for n in range(chance.choice((0, 0, 0, 1, 2)))}  # fmt: skip
    match chance.randrange(10):
        case 0 | 1 | 2:
            directory = Directory(*common)
            directory.xattrs = xattrs
            return directory
        case 3:
            target = b"t" * chance.choice((1, 60, 4000, 4095))
            return Inode(Kind.SYMLINK, *common, target=target, xattrs=xattrs)
        case 4:
            kind = chance.choice((Kind.CHAR, Kind.BLOCK))
            return Inode(kind, *common, major=chance.choice((1, 0xFFF)), minor=0xFFFFF)
        case 5:
            return Inode(Kind.FIFO, *common)
        case 6 if leaves:
            return chance.choice(leaves)
        case 7:
            return file(b"")
        case _:
            size = chance.choice((1, 4096, 4097, 2**31, 2**43))
            return Inode(Kind.FILE, *common, size=size, digest=Digest.of(chance.randbytes(8)),
                         xattrs=xattrs)  # fmt: skip


def damaged(chance: random.Random) -> bytes:
    """An image with its inodes moved about, and then a few of its bytes changed."""
    image = write_erofs(random_tree(chance))
    for _ in range(chance.choice((0, 1, 3))):
        image = moved(image, chance)
    match chance.randrange(4):
        case 0:
            pass
        case 1:
            image = mutated(image, chance)
        case _:
            image = _plausible(image, chance)
    return repair.erofs(image)


def moved(image: bytes, chance: random.Random) -> bytes:
    """
    *image* with one inode somewhere else: a writer may place them as it
    likes, so nobody may depend on where they are.
    """
    found = list(_dirents(image))
    _, nid = chance.choice(found)
    at = nid * _SLOT
    (layout, count, _, _, size) = struct.unpack_from("<HHHHQ", image, at)
    body = 12 + 4 * (count - 1) if count else 0
    tail = 0
    if layout >> 1 == 2:
        tail = (size - 1) % _BLOCK + 1
    elif layout >> 1 == 4:
        tail = 4
    record = image[at : at + INODE.size + body + tail]
    inline = layout >> 1 == 2
    place = len(image) + _SLOT * chance.randrange(
        max(1, (_BLOCK - (len(record) if inline else INODE.size)) // _SLOT + 1)
    )
    grown = bytearray(image.ljust(place, b"\0") + record)
    new = place // _SLOT
    for entry, pointed in found:
        if pointed == nid:
            # Entries in the record itself have moved with it.
            for where in (entry, entry - at + place if at <= entry < at + len(record) else entry):
                struct.pack_into("<Q", grown, where, new)
    struct.pack_into("<I", grown, place + 20, new & 0xFFFFFFFF)
    if nid == struct.unpack_from("<H", image, ROOT_NID)[0] and new < 2**16:
        struct.pack_into("<H", grown, ROOT_NID, new)
    grown[at : at + len(record)] = chance.randbytes(len(record))  # nobody may read it any more
    return bytes(grown.ljust(-(-len(grown) // _BLOCK) * _BLOCK, b"\0"))


def _plausible(image: bytes, chance: random.Random) -> bytes:
    """*image* with changes in fields of which many values are right."""
    grown = bytearray(image)
    found = list(_dirents(image))
    for _ in range(chance.randint(1, 6)):
        entry, nid = chance.choice(found)
        at = nid * _SLOT
        match chance.randrange(8):
            case 0:
                grown[at + 4] = chance.randrange(256)  # mode
            case 1:
                struct.pack_into(
                    "<II", grown, at + 24, *chance.choices((0, 7, 2**31, 2**32 - 2), k=2)
                )
            case 2:
                when = chance.choice((0, -1, 2**31, 2**33, -(2**63), 2**63 - 1))
                struct.pack_into("<qI", grown, at + 32, when, chance.randrange(10**9))
            case 3:
                grown[at + 44] = chance.randrange(4)  # links
            case 4:
                struct.pack_into("<Q", grown, at + 8, chance.choice((1, 3, 4096, 2**20, 2**43)))
            case 5:
                grown[(at + INODE.size + chance.randrange(120)) % len(grown)] = chance.randrange(
                    256
                )
            case 6:
                _, other = chance.choice(found)
                struct.pack_into("<Q", grown, entry, other)
            case 7:
                struct.pack_into("<I", grown, at + 20, chance.getrandbits(32))  # inode number
    return bytes(grown)


def _dirents(image: bytes) -> Iterator[tuple[int, int]]:
    """Every directory entry of a good image: where it is, and the nid it names."""
    todo = [struct.unpack_from("<H", image, ROOT_NID)[0]]
    seen = set(todo)
    while todo:
        for entry, _, name in entries(image, todo.pop() * _SLOT):
            nid, _, file_type, _ = DIRENT.unpack_from(image, entry)
            yield entry, nid
            if file_type == 2 and name not in (b".", b"..") and nid not in seen:
                seen.add(nid)
                todo.append(nid)


def compare(tree: Tree, mounted: Path) -> None:
    """Every name, attribute, xattr and link is what the reader has read."""
    names = Counter(node for _, node in tree.walk())
    numbers: dict[Inode, int] = {}
    for path, node in tree.walk():
        at = os.fsencode(mounted) + (b"/" + path if path else b"")
        status = os.lstat(at)
        seen: dict[str, Any] = {
            "mode": status.st_mode,
            "owner": (status.st_uid, status.st_gid),
            "mtime": status.st_mtime_ns,
            "xattrs": {os.fsencode(name): os.getxattr(at, name, follow_symlinks=False)
                       for name in os.listxattr(at, follow_symlinks=False)},
        }  # fmt: skip
        wanted: dict[str, Any] = {
            "mode": _BITS[node.kind] | node.mode,
            "owner": (node.uid, node.gid),
            "mtime": node.mtime_ns,
            "xattrs": dict(node.xattrs),
        }
        if node.digest is not None:
            redirect = b"/" + node.digest.shard_path.encode()
            wanted["xattrs"] |= {b"trusted.overlay.metacopy": b"",
                                 b"trusted.overlay.redirect": redirect}  # fmt: skip
        if isinstance(node, Directory):
            seen["names"], wanted["names"] = sorted(os.listdir(at)), sorted(node.children)
            subdirectories = sum(isinstance(child, Directory) for child in node.children.values())
            seen["links"], wanted["links"] = status.st_nlink, 2 + subdirectories
            with os.scandir(at) as found:
                kinds = {each.name: each.is_dir(follow_symlinks=False) for each in found}
            assert kinds == {name: isinstance(child, Directory)
                             for name, child in node.children.items()}  # fmt: skip
        else:
            seen["links"], wanted["links"] = status.st_nlink, names[node]
        if node.kind is Kind.FILE:
            seen["size"], wanted["size"] = status.st_size, node.size
            with open(at, "rb") as opened:
                assert not any(opened.read(5000))
        elif node.kind is Kind.SYMLINK:
            seen["target"], wanted["target"] = os.readlink(at), node.target
        elif node.kind in (Kind.CHAR, Kind.BLOCK):
            seen["device"] = (os.major(status.st_rdev), os.minor(status.st_rdev))
            wanted["device"] = (node.major, node.minor)
        assert seen == wanted, path
        assert numbers.setdefault(node, status.st_ino) == status.st_ino
    assert len(set(numbers.values())) == len(numbers), "two inodes have one number"


def try_image(number: int, base: Path, *, fsck: bool) -> bool:
    """Make an image; if the reader accepts it, mount it and compare.  Whether it did."""
    image = damaged(random.Random(number))
    try:
        tree = read_erofs(image)
    except IndexDamaged:
        return False
    (base / "index.erofs").write_bytes(image)
    point = base / "mounted"
    point.mkdir(exist_ok=True)
    mount_index(base / "index.erofs", point, loop=False)
    try:
        compare(tree, point)
    finally:
        unmount(point)
    if fsck:
        done = subprocess.run(["fsck.erofs", base / "index.erofs"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return True

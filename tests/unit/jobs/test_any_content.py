"""Whatever a layer can hold, in whatever numbers, at whatever size."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import Unsupported
from gear_plugin.image import (
    INDEX_NAME,
    MANIFEST_NAME,
    Directory,
    Kind,
    Tree,
    check_index,
    read_erofs,
)
from gear_plugin.jobs import BuildFolder, FileSource, build
from gear_plugin.names import ImageId
from tests.unit.image.rawtar import BLOCK, CHAR, DIR, END, FIFO, LINK, SYMLINK, entry, header
from tests.unit.jobs import saves
from tests.unit.jobs.fakes import Recorder

IMAGE = ImageId.parse("odd:1")
NOBODY = 0xFFFFFFFF
ACL = struct.pack(
    "<I" + "HHI" * 5,
    *(2, 1, 7, NOBODY, 2, 5, 12, 4, 5, NOBODY, 16, 5, NOBODY, 32, 0, NOBODY),
)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
DEEP = b"odd/" + b"/".join([b"d" * 250] * 16) + b"/"
LONGEST = DEEP + b"f" * (4095 - len(DEEP))


def xattr(name: bytes, value: bytes) -> dict[bytes, bytes]:
    return {b"SCHILY.xattr." + name: value}


LOWER = [
    entry(b"gone", data=b"gone"),
    entry(b"odd/", DIR, mode=0o755),
    entry(b"odd/opaque/", DIR, mode=0o755),
    entry(b"odd/opaque/hidden", data=b"hidden"),
]
UPPER = [
    entry(b"./", DIR, mode=0o755),
    entry(b".wh.gone"),
    entry(b"odd/", DIR, mode=0o1777, mtime=1_500_000_000),
    entry(b"odd/opaque/", DIR, mode=0o700),
    entry(b"odd/opaque/.wh..wh..opq"),
    entry(b"odd/opaque/shown", data=b"shown"),
    entry(b"odd/empty/", DIR, mode=0o2750, uid=7, gid=8),
    entry(b"odd/char", CHAR, device=(1, 3), mode=0o666),
    entry(b"odd/block", BLOCK, device=(259, 70_000), mode=0o660),
    entry(b"odd/fifo", FIFO, mode=0o600),
    entry(b"odd/subsecond", data=b"s", pax={b"mtime": b"1600000000.123456789"}),
    entry(b"odd/before-1970", data=b"o", pax={b"mtime": b"-5.5"}),
    entry(b"odd/far", data=b"f", pax={b"mtime": b"9000000000"}),
    entry(b"odd/acl", data=b"a", mode=0o750, pax=xattr(b"system.posix_acl_access", ACL)),
    entry(b"odd/acl-dir/", DIR, mode=0o755, pax=xattr(b"system.posix_acl_default", ACL)),
    entry(b"odd/capable", data=b"c", mode=0o755, pax=xattr(b"security.capability", CAPABILITY)),
    entry(b"odd/binary", data=b"x", pax=xattr(b"user.binary", bytes(range(256)))),
    entry(b"odd/latin-\xe9\xff\n\\", data=b"l"),
    entry(b"odd/" + b"n" * 255, data=b"n"),
    entry(b"odd/" + "ünïcode".encode(), SYMLINK, link=b"latin-\xe9"),
    entry(b"odd/long-link", SYMLINK, link=b"t" * 4095),
    entry(b"odd/setuid", data=b"u", mode=0o6755, uid=2**31, gid=2**31 + 1),
    entry(b"odd/linked", data=b"linked", mode=0o644),
    entry(b"odd/again", LINK, link=b"odd/linked", mode=0o644),
    entry(b"odd/zero", data=b""),
    entry(LONGEST, data=b"deep"),
]


def save(folder: Path, *layers: list[bytes]) -> Path:
    """An archive of these layers."""
    path = folder / "saved.tar"
    path.write_bytes(saves.saved_by_20(str(IMAGE), [b"".join(layer) + END for layer in layers]))
    return path


def built(folder: Path, archive: Path) -> tuple[Tree, Path]:
    """The tree of the index, after a node's own check, and the files."""
    build(IMAGE, None, folder, Recorder(), source=FileSource(archive, IMAGE))
    made = BuildFolder.of(folder, IMAGE)
    parts = saves.unpack(made.index_tar.read_bytes())
    check_index(parts[INDEX_NAME], parts[MANIFEST_NAME])
    return read_erofs(parts[INDEX_NAME]), made.files


@pytest.mark.root
def test_an_index_holds_all_that_tar_unpacks(tmp_path: Path) -> None:
    """
    Kinds, modes, owners, times, xattrs, ACLs, devices, links and contents, as GNU tar makes them.

    What two layers are together is merged by hand: GNU tar knows no whiteouts.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root to make devices")
    tree, files = built(tmp_path, save(tmp_path, LOWER, UPPER))
    root = tmp_path / "root"
    root.mkdir()
    plain = [member for member in UPPER if b".wh." not in member[:100]]
    words = ["tar", "-xpf", "-", "--xattrs", "--xattrs-include=*", "--numeric-owner"]
    subprocess.run(words, cwd=root, input=b"".join(plain) + END, check=True, capture_output=True)
    seen = {path: node for path, node in tree.walk() if path}
    on_disk = dict(walk(os.fsencode(root)))
    assert seen.keys() == on_disk.keys()
    assert LONGEST in seen
    for path, node in seen.items():
        status, handle = on_disk[path]
        try:
            compare(path, node, status, handle, files)
        finally:
            if handle >= 0:
                os.close(handle)
    assert seen[b"odd/linked"] is seen[b"odd/again"]


def walk(top: bytes) -> Iterator[tuple[bytes, tuple[os.stat_result, int]]]:
    """Every path, however long, with its status and an O_PATH handle."""
    stack = [(b"", os.open(top, os.O_PATH | os.O_DIRECTORY))]
    while stack:
        prefix, folder = stack.pop()
        inner = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        for name in sorted(os.fsencode(text) for text in os.listdir(inner)):
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                stack.append((prefix + name + b"/", os.dup(handle)))
            yield prefix + name, (status, handle)
        os.close(inner)
        os.close(folder)


_TYPES = {
    Kind.FILE: stat.S_ISREG,
    Kind.DIR: stat.S_ISDIR,
    Kind.SYMLINK: stat.S_ISLNK,
    Kind.CHAR: stat.S_ISCHR,
    Kind.BLOCK: stat.S_ISBLK,
    Kind.FIFO: stat.S_ISFIFO,
}


def compare(path: bytes, node: object, status: os.stat_result, handle: int, files: Path) -> None:
    from gear_plugin.image import Inode

    assert isinstance(node, Inode)
    assert _TYPES[node.kind](status.st_mode), path
    assert (node.uid, node.gid) == (status.st_uid, status.st_gid), path
    if node.kind is Kind.SYMLINK:
        assert node.target == os.fsencode(os.readlink(b"", dir_fd=handle)), path
        return
    assert node.mode == stat.S_IMODE(status.st_mode), path
    # docker does not apply a time before 1970, GNU tar does.
    if not isinstance(node, Directory) or b"/" not in path:
        assert node.mtime_ns == max(status.st_mtime_ns, 0), path
    if node.kind in (Kind.CHAR, Kind.BLOCK):
        assert (node.major, node.minor) == (os.major(status.st_rdev), os.minor(status.st_rdev))
    proc = f"/proc/self/fd/{handle}"
    xattrs = {os.fsencode(name): os.getxattr(proc, name) for name in os.listxattr(proc)}
    assert dict(node.xattrs) == xattrs, path
    if node.kind is Kind.FILE:
        assert node.size == status.st_size, path
        content = Path(proc).read_bytes()
        assert node.digest == (Digest.of(content) if content else None), path
        if node.digest is not None:
            assert (files / node.digest.shard_path).read_bytes() == content


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([entry(b"s", b"s")], "member type b's' is not supported"),
        ([entry(b"n" * 256)], "a name longer than Linux allows"),
        ([entry(LONGEST + b"f")], "a name longer than Linux allows"),
        ([entry(b"a", pax={b"GNU.sparse.major": b"1"})], "sparse"),
        ([entry(b"huge", size=2**43 + 1, pax={b"size": b"%d" % (2**43 + 1)})], "tar|limit"),
    ],
)
def test_what_no_filesystem_or_tar_can_hold_is_refused(
    tmp_path: Path, members: list[bytes], words: str
) -> None:
    """
    Sockets among it: docker leaves them out when it makes a layer, so no layer has one.
    """
    from gear_plugin.errors import GearError

    with pytest.raises(GearError, match=words) as raised:
        built(tmp_path, save(tmp_path, members))
    assert "\n" not in str(raised.value)
    assert words == "tar|limit" or isinstance(raised.value, Unsupported)


def test_as_many_layers_as_docker_allows(tmp_path: Path) -> None:
    """
    127, each of which replaces, hides and adds.
    """
    layers = [
        [
            entry(b"same", data=b"%d" % number),
            entry(b"own-%d" % number, data=b"own %d" % number),
            entry(b".wh.own-%d" % (number - 2)),
        ]
        for number in range(127)
    ]
    tree, files = built(tmp_path, save(tmp_path, *layers))
    assert {path for path, _ in tree.walk() if path} == {b"same", b"own-125", b"own-126"}
    assert len(list(files.glob("*/*"))) == 3


def test_a_hundred_thousand_files_need_little_memory(tmp_path: Path) -> None:
    """
    Less than 300 MB for the whole process; each file has a name, a time and a content of its own.
    """
    archive = tmp_path / "saved.tar"
    many_files(archive, 100_000)
    code = (
        "import sys; from pathlib import Path\n"
        "from gear_plugin.jobs import FileSource, build; from gear_plugin.names import ImageId\n"
        "from gear_plugin.jobs.progress import Silent\n"
        "name, root, archive = ImageId.parse('odd:1'), Path(sys.argv[1]), Path(sys.argv[2])\n"
        "made = build(name, None, root, Silent(), source=FileSource(archive, name))\n"
        # Not ru_maxrss: that begins with what the parent had.
        "status = Path('/proc/self/status').read_text()\n"
        "peak = status.partition('VmHWM:')[2].split()[0]\n"
        "print(made.files, made.objects, peak)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, archive], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files, objects, kibibytes = (int(word) for word in done.stdout.split())
    assert (files, objects) == (100_000, 1000)
    assert kibibytes < 160 * 1024  # it was 113 MB


def many_files(path: Path, count: int) -> None:
    """A saved image of so many files in one layer."""
    parts = []
    for number in range(count):
        if number % 25 == 0:
            folder = b"usr/lib/package-%d/" % (number // 25)
            parts.append(header(folder, DIR, 0, 0o755))
        # 1,000 contents: what is made here is memory, not files on the disk.
        data = b"content %d" % (number % 1000)
        name = folder + b"some-module-%d.py" % number
        parts.append(header(name, b"0", len(data), mtime=1_600_000_000 + number) + data)
        parts.append(bytes(-len(data) % 512))
    parts.append(END)
    path.write_bytes(saves.saved_by_20(str(IMAGE), [b"".join(parts)]))

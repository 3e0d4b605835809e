"""
Makes every odd file that a program in a container can make, in three layers.

Runs inside containers, on Debian's Python and nothing else: `make`, `change`
and `again` are three RUN steps of the torture image, `check` is its task.
What no program can make, or docker does not carry from a container into a
layer (fractions of seconds, ACLs, `user.*` attributes), is in `odd_layers`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys

ODD = b"/odd/"
MANY = int(os.environ.get("MANY", "20000"))
LINKS = 1_000
DEPTH = 1_000
LARGE = 17 * 2**20 + 4321
"""More than 16 MiB, where content is kept in chunks; no multiple of anything."""

NAMES = [
    *(b"latin-\xe9", b"utf8-\xc3\xa9", b"utf8-e\xcc\x81", b"\xff\xfe", b"\xf0\x9f\x90\x8b"),
    *(b"new\nline", b"tab\there", b"back\\slash", b"colon:", b"comma,", b"a=b", b"per%2fcent"),
    *(b" ", b"  two  ", b" leading", b"trailing ", b"-rf", b"--help", b"*", b"?", b"[a]", b"$HOME"),
    *(b"'", b'"', b"`id`", b";", b"&", b"|", b"<", b">", b"!", b"#", b"~", b"\x01", b"\x7f", b"\r"),
    *(b"...", b"..a", b".hidden", b"readme", b"README", b"Readme", b"con", b"nul.txt", b"a+b"),
    *(b".wh", b"wh.x", b"x.wh.", b"a.wh.b", b".WH.x", b".wh-x", b".gear", b".dockerenv"),
    *(b"n" * 255, b"\xc3\xa9" * 127, b"\xe9" * 255, b"upper", b"work", b"merged", b"index.erofs"),
]


def make() -> None:
    """The lowest layer."""
    names()
    modes()
    links()
    symlinks()
    specials()
    contents()
    large()
    folders()
    things_to_change()
    write(ODD + b"implied/lower", b"a layer above names no directory on its way here\n")
    os.chmod(ODD + b"implied", 0o1777)
    os.chown(ODD + b"implied", 5, 6)
    write(b"/.gear/notes", b"an image's own .gear\n")
    write(b"/.gear/index", b"not an index\n")


def names() -> None:
    for number, name in enumerate(NAMES):
        write(ODD + b"names/" + name, b"%d\n" % number)
        os.makedirs(ODD + b"folders-named/" + name)
        write(ODD + b"folders-named/" + name + b"/x", name)
        os.makedirs(ODD + b"links-named", exist_ok=True)
        os.symlink(b"../names/" + name, ODD + b"links-named/" + name)


def modes() -> None:
    for mode in (0, 0o1, 0o444, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777):
        path = ODD + b"modes/%o" % mode
        write(path, b"%o\n" % mode)
        os.chmod(path, mode)
        os.mkdir(path + b".d")
        os.chmod(path + b".d", mode)
    for uid, gid in ((65534, 65534), (1, 2_000_000), (0x7FFFFFFF, 0), (4294967294, 4294967294)):
        path = ODD + b"modes/owner-%d" % uid
        write(path, b"")
        os.mkdir(path + b".d")
        os.symlink(b"x", path + b".l")
        for owned in (path, path + b".d", path + b".l"):
            os.chown(owned, uid, gid, follow_symlinks=False)
    write(ODD + b"modes/capable", b"#!/bin/sh\n", 0o755)
    # VFS_CAP_REVISION_2 with the effective bit, and cap_net_raw (linux/capability.h).
    capability = b"\x01\x00\x00\x02" + (1 << 13).to_bytes(4, "little") + bytes(12)
    os.setxattr(ODD + b"modes/capable", "security.capability", capability)
    for second in (0, 1, 2**31 - 1, 2**31, 2**32, 2**33 + 1):
        path = ODD + b"modes/at-%d" % second
        write(path, b"")
        os.utime(path, (second, second))


def links() -> None:
    write(ODD + b"links/first", b"linked\n")
    for number in range(300):
        link(b"links/first", b"links/%d/%d" % (number % 7, number))
    write(ODD + b"links/empty", b"")
    link(b"links/empty", b"links/empty-too")
    os.symlink("first", ODD + b"links/symlink")
    link(b"links/symlink", b"links/symlink-too")
    os.mkfifo(ODD + b"links/fifo")
    link(b"links/fifo", b"links/fifo-too")
    os.mknod(ODD + b"links/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    link(b"links/null", b"links/null-too")
    for name in (b"cut", b"kept", b"changed", b"left"):
        write(ODD + b"links/lower-" + name, b"a link of the lower layer: " + name)
        link(b"links/lower-" + name, b"links/other/lower-" + name)
    link(b"links/first", b"names/linked")


def symlinks() -> None:
    os.makedirs(ODD + b"symlinks")
    for number in range(LINKS):
        target = (b"t%04d/" % number * 700)[: 1 + number * 4094 // (LINKS - 1)]
        os.symlink(target, ODD + b"symlinks/%04d" % number)
    for name, to in ((b"root", "/"), (b"up", "../../../../.."), (b"self", "self"), (b"dot", ".")):
        os.symlink(to, ODD + b"symlinks/" + name)


def specials() -> None:
    os.makedirs(ODD + b"specials")
    for kind, letter in ((stat.S_IFCHR, b"c"), (stat.S_IFBLK, b"b")):
        for major, minor in ((1, 3), (7, 0), (0, 1), (259, 1_048_575), (4095, 255)):
            path = ODD + b"specials/%s-%d-%d" % (letter, major, minor)
            os.mknod(path, kind | 0o640, os.makedev(major, minor))
    os.mkfifo(ODD + b"specials/fifo", 0o600)
    # docker leaves sockets out of layers: they must not come back from anywhere.
    os.chdir(ODD + b"specials")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    os.chdir("/")


def contents() -> None:
    write(ODD + b"contents/zero", b"")
    write(ODD + b"contents/one", b"\0")
    for size in (511, 512, 513, 4095, 4096, 4097, 65535, 65536, 2**20 - 1, 2**20, 2**20 + 1):
        write(ODD + b"contents/%d" % size, noise(size))
        write(ODD + b"contents/%d-zeros" % size, bytes(size))
    for number in range(20):
        write(ODD + b"contents/same/%d" % number, b"the same\n")
    # A sparse file is a file of zeros to a layer.
    for name, size in ((b"all-hole", 65536), (b"hole", 3 * 2**20)):
        with open(ODD + b"contents/" + name, "wb") as file:
            file.truncate(size)
    with open(ODD + b"contents/hole", "r+b") as file:
        file.seek(2**20 + 5)
        file.write(b"an island")


def large() -> None:
    write(ODD + b"large/data", noise(LARGE))
    write(ODD + b"large/zeros", bytes(LARGE))
    with open("/bin/echo", "rb") as file:
        program = file.read()
    # An ELF file may have anything behind it.
    write(ODD + b"large/program", program + noise(LARGE), 0o755)


def folders() -> None:
    os.makedirs(ODD + b"empty/in-empty")
    os.makedirs(ODD + b"many")
    for number in range(MANY):
        path = ODD + b"many/%05d" % number
        write(path, b"" if number % 2 else b"%d\n" % (number % 100))
    deep = os.open(ODD, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir(b"d", dir_fd=deep)
        below = os.open(b"d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    with open(os.open(b"bottom", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=deep), "wb") as file:
        file.write(b"the bottom\n")
    os.close(deep)


KINDS = ("file", "dir", "symlink", "dirlink", "fifo", "device")


def things_to_change() -> None:
    for before in KINDS:
        for after in KINDS:
            put(b"replaced/%s-to-%s" % (before.encode(), after.encode()), before, b"before")
    for name in (b"file", b"folder/x", b"folder/y/z", b"emptied/x", b"emptied/y/z"):
        write(ODD + b"deleted/" + name, b"to be deleted\n")
    for name in (b"twice", b"opaque/low", b"opaque/both", b"opaque/deep/low", b"opaque/deep/both"):
        write(ODD + b"deleted/" + name, b"lower\n")
    for name in (b"moved", b"chmodded", b"chowned", b"appended", b"touched", b"same"):
        write(ODD + b"metadata/" + name, b"lower\n")
        os.makedirs(ODD + b"metadata/" + name + b".d")
        write(ODD + b"metadata/" + name + b".d/inside", b"inside\n")


def change() -> None:
    """The second layer: replaces, deletes, hides."""
    for before in KINDS:
        for after in KINDS:
            path = b"replaced/%s-to-%s" % (before.encode(), after.encode())
            remove(path)
            put(path, after, b"after")
    for path in (b"file", b"folder", b"emptied/x", b"emptied/y", b"twice", b"opaque"):
        remove(b"deleted/" + path)
    write(ODD + b"deleted/opaque/both", b"upper\n")
    write(ODD + b"deleted/opaque/deep/both", b"upper\n")
    for number in range(0, MANY, 7):
        os.unlink(ODD + b"many/%05d" % number)
    remove(b"links/other/lower-cut")
    link(b"links/lower-kept", b"links/a-third")
    os.chmod(ODD + b"links/lower-changed", 0o600)
    os.unlink(ODD + b"links/first")
    metadata = ODD + b"metadata/"
    os.rename(metadata + b"moved", ODD + b"moved-here")
    shutil.move(os.fsdecode(metadata + b"moved.d"), "/odd/moved-here.d")
    os.chmod(metadata + b"chmodded", 0o640)
    os.chmod(metadata + b"chmodded.d", 0o700)
    os.chown(metadata + b"chowned", 33, 33)
    os.chown(metadata + b"chowned.d", 33, 33)
    with open(metadata + b"appended", "ab") as file:
        file.write(b"upper\n")
    write(metadata + b"appended.d/another", b"another\n")
    os.utime(metadata + b"touched", (10**9, 10**9))
    os.utime(metadata + b"touched.d", (10**9, 10**9))


def again() -> None:
    """The third layer: brings back, takes away again."""
    write(ODD + b"deleted/twice", b"third\n")
    write(ODD + b"deleted/opaque/low", b"third\n")
    remove(b"deleted/opaque/deep")
    write(ODD + b"deleted/opaque/deep/third", b"third\n")
    write(ODD + b"deleted/folder", b"a file now\n")
    for before in KINDS:
        remove(b"replaced/%s-to-file" % before.encode())
        write(ODD + b"replaced/%s-to-dir/third" % before.encode(), b"third\n")
    for number in range(0, MANY, 14):
        write(ODD + b"many/%05d" % number, b"back\n")
    write(ODD + b"links/first", b"a new first\n")


def check() -> None:
    """What a program in the finished image sees; raises, or prints `all odd`."""
    for number, name in enumerate(NAMES):
        expect(read(b"names/" + name), b"%d\n" % number)
        expect(read(b"links-named/" + name), b"%d\n" % number)
        expect(read(b"folders-named/" + name + b"/x"), name)
    expect(set(os.listdir(ODD + b"names")), {*NAMES, b"linked"})
    expect(hashlib.sha256(read(b"large/data")).digest(), hashlib.sha256(noise(LARGE)).digest())
    expect(read(b"large/zeros").strip(b"\0"), b"")
    expect(subprocess.check_output([ODD + b"large/program", "runs"]), b"runs\n")
    expect(len(os.listdir(ODD + b"many")), MANY - len(range(0, MANY, 7)) + len(range(0, MANY, 14)))
    expect(len(os.listdir(ODD + b"symlinks")), LINKS + 4)
    expect(len(os.readlink(ODD + b"symlinks/%04d" % (LINKS - 1))), 4095)
    expect(sorted(os.listdir(ODD + b"deleted/opaque")), [b"both", b"deep", b"low"])
    expect(os.listdir(ODD + b"deleted/opaque/deep"), [b"third"])
    expect(os.listdir(ODD + b"deleted/emptied"), [])
    expect(os.path.lexists(ODD + b"specials/socket"), False)
    expect(read(b"specials/c-1-3"), b"")
    expect(read(b"../.gear/notes"), b"an image's own .gear\n")
    expect(read(b"metadata/appended"), b"lower\nupper\n")
    print("all odd")


def expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{found!r:.300} is not {wanted!r:.300}")


def put(path: bytes, kind: str, text: bytes) -> None:
    """One file of the *kind* at *path*."""
    full = ODD + path
    os.makedirs(os.path.dirname(full), exist_ok=True)
    if kind == "file":
        write(full, text)
    elif kind == "dir":
        os.mkdir(full)
        write(full + b"/" + text, text)
        write(full + b"/inside", text)
    elif kind == "symlink":
        os.symlink(text, full)
    elif kind == "dirlink":
        os.symlink(b"../names", full)
    elif kind == "fifo":
        os.mkfifo(full)
    else:
        os.mknod(full, stat.S_IFCHR | 0o600, os.makedev(1, 5))


def write(path: bytes, data: bytes, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)


def read(path: bytes) -> bytes:
    with open(ODD + path, "rb") as file:
        return file.read()


def link(source: bytes, name: bytes) -> None:
    os.makedirs(os.path.dirname(ODD + name), exist_ok=True)
    os.link(ODD + source, ODD + name, follow_symlinks=False)


def remove(path: bytes) -> None:
    full = ODD + path
    if os.path.isdir(full) and not os.path.islink(full):
        shutil.rmtree(full)
    else:
        os.unlink(full)


def noise(size: int) -> bytes:
    """*size* bytes that do not compress, always the same."""
    return hashlib.shake_128(b"gear").digest(size)


if __name__ == "__main__":
    {"make": make, "change": change, "again": again, "check": check}[sys.argv[1]]()

"""
What scenarios do to files, inside containers: Debian's Python and nothing else.

Sent as source to `python3 -c`.  Each function is a scenario of `changes`;
what it prints is compared as well.  Times are set where they would otherwise
be the hour's, so that most of the layers have the same bytes at every run.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable

THEN = 1_550_000_000
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
LIBC = ctypes.CDLL(None, use_errno=True)


def tell(what: str, do: Callable[..., object], *arguments: object, **options: object) -> None:
    """Print what *do* returns, or how it fails."""
    try:
        print(what, do(*arguments, **options))
    except OSError as error:
        print(what, errno.errorcode[error.errno or 0])


def settle(*paths: str) -> None:
    """Give all that lies below *paths*, and they themselves, one time."""
    for path in paths:
        for folder, folders, files in os.walk(os.fsencode(path), topdown=False):
            for name in (*files, *folders):
                os.utime(folder + b"/" + name, (THEN, THEN), follow_symlinks=False)
        os.utime(path, (THEN, THEN), follow_symlinks=False)


def write(path: str, text: str = "text\n") -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def rename2(old: str, new: str, flags: int) -> None:
    """renameat2(2)."""
    if LIBC.renameat2(-100, old.encode(), -100, new.encode(), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def nothing_really() -> None:
    """What copies a file up and leaves it as it was."""
    at = "/odd/metadata/"
    os.chmod(at + "chmodded", stat.S_IMODE(os.lstat(at + "chmodded").st_mode))
    os.chown(at + "chowned", 0, 0)
    os.chmod(at + "chmodded.d", stat.S_IMODE(os.lstat(at + "chmodded.d").st_mode))
    os.close(os.open(at + "appended", os.O_RDWR | os.O_APPEND))
    was = os.lstat(at + "touched")
    os.utime(at + "touched", ns=(was.st_atime_ns, was.st_mtime_ns))
    with open(at + "same", "r+") as file:  # other content, same size, same time
        file.write("LOWER")
    os.utime(at + "same", ns=(was.st_atime_ns, os.lstat(at + "moved").st_mtime_ns))
    write(at + "same.d/new")
    os.unlink(at + "same.d/new")
    os.rename(at + "moved", at + "away")
    os.rename(at + "away", at + "moved")
    link = "/odd/links/symlink"
    was = os.lstat(link)
    target = os.readlink(link)
    os.unlink(link)
    os.symlink(target, link)
    os.utime(link, ns=(was.st_atime_ns, was.st_mtime_ns), follow_symlinks=False)
    shutil.rmtree("/odd/copied/up")
    os.mkdir("/odd/copied/up")
    os.chown("/odd/copied/up", 33, 44)
    os.chmod("/odd/copied/up", 0o2751)
    os.setxattr("/odd/copied/file", "user.gone", b"x")
    os.removexattr("/odd/copied/file", "user.gone")
    with open("/odd/copied/hard", "rb") as file:
        file.read()


def metadata_only() -> None:
    """Modes, owners and times of what the image has, links and folders among them."""
    at = "/odd/metadata/"
    for name, mode in (("moved", 0), ("chmodded", 0o7777), ("chmodded.d", 0o1777)):
        os.chmod(at + name, mode)
    for name, who in (("chowned", (1, -1)), ("chowned.d", (-1, 2)), ("appended", (70000, 2**31))):
        os.chown(at + name, *who)
    os.chown("/odd/replaced/symlink-to-file", 5, 6, follow_symlinks=False)
    os.utime("/odd/replaced/dirlink-to-file", (5, THEN), follow_symlinks=False)
    os.chmod("/odd/replaced/fifo-to-file", 0o604)
    os.chown("/odd/replaced/device-to-file", 8, 9)
    os.utime(at + "touched", (1, 10**9))
    os.utime(at + "touched.d", (1, 10**9))
    os.chown("/odd/copied/setuid", 33, 33)
    os.chmod("/odd/copied/capable", 0o4711)
    os.truncate(at + "same", 2)
    os.utime(at + "same", (THEN, THEN))


def attributes() -> None:
    """user.*, ACLs, capabilities of both versions: on new files and on the image's."""
    os.makedirs("/attributes/folder")
    write("/attributes/file")
    two = b"\x01\x00\x00\x02" + (1 << 10).to_bytes(4, "little") + bytes(12)
    three = b"\x01\x00\x00\x03" + (1 << 10).to_bytes(4, "little") + bytes(12) + b"\xe8\x03\0\0"
    acl = (2).to_bytes(4, "little")
    for tag, may, who in ((1, 6, -1), (2, 4, 1000), (4, 4, -1), (16, 4, -1), (32, 0, -1)):
        acl += tag.to_bytes(2, "little") + may.to_bytes(2, "little")
        acl += (who & 0xFFFFFFFF).to_bytes(4, "little")
    at = "/odd/metadata/"
    places = {
        "new file": "/attributes/file",
        "new folder": "/attributes/folder",
        "file": at + "appended",
        "folder": at + "appended.d",
    }
    for what, path in places.items():
        for key in ("user.note", "user.\xe9", "trusted.note", "security.note"):
            tell(f"{key} of {what}", os.setxattr, path, key, b"\0value\n")
        tell(f"access ACL of {what}", acl_of, path, "access", acl)
    tell("default ACL", acl_of, "/attributes/folder", "default", acl)
    os.chmod(at + "same.d", 0o711)  # without a change before, Linux refuses it on EROFS
    tell("default ACL", acl_of, at + "same.d", "default", acl)
    write("/attributes/folder/inherits")
    write(at + "same.d/inherits")
    for name in ("second", "third"):
        shutil.copy("/bin/true", f"/attributes/{name}")
    tell("capability", os.setxattr, "/attributes/second", "security.capability", two)
    tell("capability", os.setxattr, "/attributes/third", "security.capability", three)
    tell("capability", os.setxattr, at + "moved", "security.capability", two)
    os.symlink("nowhere", "/attributes/link")
    for key in ("user.x", "trusted.x", "security.x"):
        tell(key, os.setxattr, "/attributes/link", key, b"x", follow_symlinks=False)
    tell("removed", os.removexattr, "/odd/copied/capable", "security.capability")
    for path in ("/odd/tar/attributes/file", "/odd/tar/attributes/acl-dir"):
        tell("listed", listed, path)
        os.chmod(path, 0o711)
        tell("listed", listed, path)
    settle("/attributes")


def capabilities_alone() -> None:
    """Take away every attribute that a Gear layer keeps and docker's does not."""
    changed = [b"/odd/tar/attributes/file", b"/odd/tar/attributes/acl-dir"]
    for top in (b"/attributes", b"/odd/metadata"):
        for folder, _, files in os.walk(top):
            changed += [folder, *(folder + b"/" + name for name in files)]
    for path in changed:
        for key in os.listxattr(path, follow_symlinks=False):
            if key.startswith(("user.", "system.posix_acl_")):
                os.removexattr(path, key, follow_symlinks=False)
    settle("/attributes")


def listed(path: str) -> list[str]:
    return sorted(os.listxattr(path))


def names_of(path: str) -> int:
    return os.lstat(path).st_nlink


def acl_of(path: str, kind: str, value: bytes) -> None:
    os.setxattr(path, f"system.posix_acl_{kind}", value)


def renames() -> None:
    """rename(2) in all its forms, of what the image has and what it has not."""
    os.makedirs("/renames/own/below")
    write("/renames/own/below/x")
    at = "/odd/metadata/"
    tell("folder", os.rename, at + "moved.d", at + "elsewhere.d")
    tell("file", os.rename, at + "moved", "/renames/file")
    tell("onto a file", os.rename, at + "chmodded", at + "chowned")
    tell("own folder", os.rename, "/renames/own", "/renames/renamed")
    shutil.rmtree(at + "chmodded.d")
    tell("onto a hole", os.rename, "/renames/renamed", at + "chmodded.d")
    os.makedirs("/renames/over")
    tell("onto a folder", os.rename, "/renames/over", at + "chowned.d")
    tell("exchange", rename2, at + "appended", at + "touched", EXCHANGE)
    tell("exchange", rename2, "/odd/replaced/file-to-dir", "/renames/file", EXCHANGE)
    tell("exchange", rename2, "/odd/replaced/dir-to-dir", "/renames/file", EXCHANGE)
    tell("no replace", rename2, at + "appended", at + "touched", NOREPLACE)
    tell("no replace", rename2, at + "appended", at + "new", NOREPLACE)
    tell("whiteout", rename2, at + "touched", at + "gone", WHITEOUT)
    tell("symlink", os.rename, "/odd/replaced/symlink-to-dir", "/renames/symlink")
    tell("fifo", os.rename, "/odd/replaced/fifo-to-dir", "/renames/fifo")
    tell("device", os.rename, "/odd/replaced/device-to-dir", "/renames/device")
    tell("linked", os.rename, "/odd/links/lower-cut", "/odd/links/lower-kept")
    tell("linked", os.rename, "/odd/links/lower-left", "/renames/left")
    shutil.move("/odd/replaced/dir-to-file", "/renames/moved-by-copying")
    settle("/renames", "/odd/replaced", "/odd/metadata", "/odd/links")


def linked() -> None:
    """Hard links to what the image has, to new files, across folders; links undone."""
    os.makedirs("/linked/far")
    write("/linked/own", "own\n")
    os.link("/linked/own", "/linked/far/own")
    os.link("/linked/own", "/odd/links/0/own")
    tell("lower", os.link, "/odd/links/lower-kept", "/linked/kept")
    tell("symlink", os.link, "/odd/links/symlink", "/linked/l", follow_symlinks=False)
    tell("fifo", os.link, "/odd/links/fifo", "/linked/fifo")
    tell("device", os.link, "/odd/links/null", "/linked/null")
    tell("empty", os.link, "/odd/links/empty", "/linked/empty")
    tell("folder", os.link, "/odd/links", "/linked/folder")
    os.unlink("/odd/links/other/lower-cut")
    with open("/odd/links/lower-changed", "a") as file:
        file.write("more\n")
    for name in ("lower-changed", "other/lower-changed", "lower-kept", "first", "0/0"):
        tell(name, names_of, "/odd/links/" + name)
    os.unlink("/linked/own")
    tell("own", names_of, "/linked/far/own")
    handle = os.open("/linked", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(handle, b"had no name")
    named = f"/proc/self/fd/{handle}"
    tell("O_TMPFILE", os.link, named, "/linked/named", follow_symlinks=True)
    os.close(handle)
    for number in range(20):
        os.symlink("x", f"/linked/far/symlink-{number}")
    settle("/linked", "/odd/links")


def specials() -> None:
    """Devices, fifos and sockets made, changed, replaced and taken away."""
    os.makedirs("/specials")
    for kind, name in ((stat.S_IFCHR, "c"), (stat.S_IFBLK, "b"), (stat.S_IFIFO, "p")):
        for device in ((0, 0), (1, 3), (259, 70_000)):
            path = f"/specials/{name}-{device[0]}"
            tell(path, os.mknod, path, kind | 0o640, os.makedev(*device))
    at = "/odd/specials/"
    os.unlink(at + "fifo")
    write(at + "fifo", "a file now\n")
    os.chmod(at + "c-1-3", 0o600)
    os.unlink(at + "b-7-0")
    os.mknod(at + "b-7-0", stat.S_IFBLK | 0o640, os.makedev(7, 1))
    for path in ("/specials/socket", at + "socket", "/odd/metadata/moved.d/socket"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
    os.chmod("/specials/socket", 0o601)
    os.makedirs("/specials/only-a-socket")
    os.rename("/specials/socket", "/specials/only-a-socket/s")
    os.makedirs("/odd/replaced/file-to-link-of-socket")
    settle("/specials", "/odd/specials", "/odd/metadata/moved.d", "/odd/replaced")


def sizes() -> None:
    """Holes, zeros, files cut and files grown, around the sizes where tar pads."""
    os.makedirs("/sizes")
    for size in (0, 1, 511, 512, 513, 10_239, 10_240, 1 << 20, (1 << 20) + 1):
        with open(f"/sizes/{size}", "wb") as file:
            file.write(b"x" * size)
        with open(f"/sizes/{size}-hole", "wb") as file:
            file.truncate(size)
    with open("/sizes/islands", "wb") as file:
        for at in (0, 70_000, 5_000_000):
            file.seek(at)
            file.write(b"island")
        file.truncate(9_000_001)
    top = "/odd/contents/"
    os.truncate(top + "65536", 100)
    os.truncate(top + "4096", 0)
    os.truncate(top + "1048576-zeros", 3_000_000)
    os.truncate(top + "one", 5000)
    with open(top + "1048577", "r+b") as file:
        file.seek(1_000_000)
        file.write(b"in the middle")
    with open(top + "zero", "w") as file:
        file.write("no longer\n")
    with open(top + "hole", "r+b") as file:
        file.seek(7)
        file.write(b"filled")
    shutil.copyfile(top + "65535", top + "4097")
    settle("/sizes", "/odd/contents")


def names() -> None:
    """Names in every byte there is: made, changed, deleted, folders of such names emptied."""
    top = b"/odd/names/"
    for number, name in enumerate(sorted(os.listdir(top))):
        if number % 3 == 0:
            os.unlink(top + name)
        elif number % 3 == 1:
            os.chmod(top + name, 0o600)
    for number, name in enumerate(sorted(os.listdir(b"/odd/folders-named"))):
        folder = b"/odd/folders-named/" + name
        if number % 3 == 0:
            shutil.rmtree(folder)
        elif number % 3 == 1:
            shutil.rmtree(folder)
            os.mkdir(folder)
        else:
            with open(folder + b"/new-\xff\n", "w") as file:
                file.write("new\n")
    for value in range(1, 256):
        if value != ord("/"):
            with open(top + b"byte-%c-%d" % (value, value), "w") as file:
                file.write(f"{value}\n")
    for length in (99, 100, 101, 155, 156, 255):
        long = top + b"l" * length
        os.mkdir(long)
        os.symlink(b"t" * length, long + b"/link")
        os.symlink(b"\xe9" * length, long + b"/raw-link")
        with open(long + b"/\xe9", "w") as file:
            file.write("x")
        os.link(long + b"/\xe9", long + b"/linked")
    settle("/odd/names", "/odd/folders-named")


def times() -> None:
    """Fractions of seconds, times far from now, and what a rounding could hide."""
    at = "/odd/metadata/"
    whole = os.lstat(at + "moved").st_mtime_ns // 10**9 * 10**9
    os.utime(at + "moved", ns=(whole, whole + 5))
    os.utime(at + "chmodded", ns=(whole, whole + 10**9))
    os.utime(at + "appended.d", ns=(whole, whole + 123_456_789))
    os.makedirs("/times")
    for nanoseconds in (
        0,
        1,
        999_999_999,
        THEN * 10**9 + 500_000_000,
        2**33 * 10**9,
        2**31 * 10**9,
    ):
        path = f"/times/{nanoseconds}"
        write(path)
        os.mkdir(path + ".d")
        os.symlink("x", path + ".l")
        for one in (path, path + ".d", path + ".l"):
            os.utime(one, ns=(nanoseconds, nanoseconds), follow_symlinks=False)
    for before in (-1, -(10**9), -(2**31)):
        path = f"/times/{before}"
        os.symlink("x", path)
        tell("before 1970", os.utime, path, (before, before), follow_symlinks=False)
    os.utime("/times", (THEN, THEN))


def top_folders() -> None:
    """Folders right below the root: changed, replaced, and what docker itself makes there."""
    os.chmod("/srv", 0o700)
    os.chown("/mnt", 1, 1)
    shutil.rmtree("/opt")
    os.makedirs("/opt/new")
    write("/opt/new/x")
    tell("rmdir", os.rmdir, "/media")
    os.symlink("srv", "/media")
    tell("etc", write, "/etc/hostname.new")
    tell("hosts", os.rename, "/etc/hostname.new", "/etc/hostname")
    tell("hosts", os.unlink, "/etc/hosts")
    tell("mtab", os.unlink, "/etc/mtab")
    tell("dockerenv", os.unlink, "/.dockerenv")
    tell("dev", write, "/dev/x")
    tell("proc", write, "/proc/x")
    os.chmod("/", 0o711)
    settle("/opt", "/srv", "/mnt")
    os.utime("/media", (THEN, THEN), follow_symlinks=False)


def emptied() -> None:
    """Folders emptied, taken away, and made again with nothing or something in them."""
    top = "/odd/replaced/"
    for name in sorted(os.listdir(top)):
        if os.path.isdir(top + name) and not os.path.islink(top + name):
            shutil.rmtree(top + name)
            if "to-dir" in name or "filled" in name:
                os.mkdir(top + name)
            if name.endswith(("to-dirlink", "to-dir")):
                write(top + name + "/again")
        else:
            os.unlink(top + name)
    settle("/odd/replaced")


def filled() -> None:
    """The same folders, with other things under the same names."""
    top = "/odd/replaced/"
    for name in ("dir-to-dir", "file-to-dir", "dir-to-file", "symlink-to-dir", "filled/below"):
        write(top + name + "/before", "another\n")
        write(top + name + "/inside/deeper", "a folder now\n")
    settle("/odd/replaced")


def deep() -> None:
    """Folders 1,200 deep, something at each hundred; and folders inside those of the image."""
    os.mkdir("/deep")
    here = os.open("/deep", os.O_RDONLY)
    for number in range(1200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        if number % 100 == 99:
            os.symlink("x", f"l{number}", dir_fd=here)
    with open(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=here), "w") as file:
        file.write("the bottom\n")
    os.close(here)
    path = "/odd" + "/d" * 500
    os.chmod(path, 0o711)
    write(path + "/halfway")
    settle("/deep")


def numbers() -> None:
    """Inode and device numbers: what tools that stay on one filesystem go by."""
    folder, file = os.stat("/odd/metadata"), os.stat("/odd/metadata/moved")
    print("one device", folder.st_dev == file.st_dev, os.stat("/").st_dev == file.st_dev)
    os.chmod("/odd/metadata/moved", 0o640)
    with open("/odd/metadata/appended", "a") as opened:
        opened.write("more\n")
    after = os.stat("/odd/metadata/moved")
    print("same after a change", (file.st_dev, file.st_ino) == (after.st_dev, after.st_ino))
    write("/odd/metadata/new")
    print("new", os.stat("/odd/metadata/new").st_dev == folder.st_dev)
    seen: dict[tuple[int, int], bytes] = {}
    twice = []
    for top, _, names in os.walk(b"/odd"):
        for name in names:
            one = os.lstat(top + b"/" + name)
            key = (one.st_dev, one.st_ino)
            if one.st_nlink == 1 and key in seen:
                twice.append((seen[key], top + b"/" + name))
            seen[key] = top + b"/" + name
    print("one number for two files", twice)
    for command in (
        "tar --one-file-system -C / -cf - odd | tar -t | wc -l",
        "find /odd -xdev | wc -l",
        "du -x --apparent-size -b /odd/contents | tail -1 | cut -f1",
        "stat -f -c '%T %l' / /odd/metadata",
    ):
        print(command, subprocess.run(command, shell=True, capture_output=True).stdout.decode())

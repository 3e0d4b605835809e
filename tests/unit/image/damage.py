"""
Damaged indexes, made from a whole one by changing what must not change.

`python -m tests.unit.image.damage` writes them to tests/corpus/index/, where
they also serve readers in other languages; a test holds both together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from gear_plugin.image import Directory, Inode, Kind, Tree, write_erofs
from gear_plugin.image.erofs_format import super_checksum
from tests.unit.image.trees import file, tree_of

CORPUS = Path(__file__).parents[2] / "corpus" / "index"

SUPER = 1024
ROOT_NID, INODES, BLOCKS, UUID, FEATURES = (SUPER + at for at in (14, 16, 36, 48, 80))
# Offsets in an inode.
FORMAT, XATTRS, MODE, SIZE, UNION, NANOSECONDS, LINKS, RESERVED = 0, 2, 4, 8, 16, 40, 44, 48
NID, TYPE = 0, 10  # offsets in a directory entry


def small_tree() -> Tree:
    """A bit of everything, within one block."""
    linked = file(b"linked")
    return tree_of(
        {
            b"a": linked,
            b"c": Inode(Kind.CHAR, 0o600, 0, 0, 0, major=1, minor=0),
            b"d": Directory(xattrs={b"trusted.overlax.opaque": b"y"}),
            b"d/h": linked,
            b"d/x": file(b"x"),
            b"e": file(b""),
            b"l": Inode(Kind.SYMLINK, 0o777, 0, 0, 0, target=b"target"),
        }
    )


def sealed(image: bytes) -> bytes:
    """*image* with the checksum that fits it."""
    return image[: SUPER + 4] + struct.pack("<I", super_checksum(image[:4096])) + image[SUPER + 8 :]


def patched(image: bytes, at: int, new: bytes) -> bytes:
    """*image* with *new* at an offset, sealed again."""
    return sealed(image[:at] + new + image[at + len(new) :])


def entries(image: bytes, directory: int) -> Iterator[tuple[int, int, bytes]]:
    """
    The entry offset, name offset and name of all that a directory holds.

    *directory* is the inode's offset; a minimal reader of its own.
    """
    (layout, xattrs) = struct.unpack_from("<HH", image, directory)
    (size, block) = struct.unpack_from("<QI", image, directory + SIZE)
    inline = directory + 64 + (12 + 4 * (xattrs - 1) if xattrs else 0)
    for start in range(0, size, 4096):
        is_tail = layout >> 1 == 2 and start == (size - 1) // 4096 * 4096
        base = inline if is_tail else block * 4096 + start
        length = min(4096, size - start)
        (first,) = struct.unpack_from("<H", image, base + 8)
        offsets = [struct.unpack_from("<H", image, base + at + 8)[0] for at in range(0, first, 12)]
        for number, (offset, end) in enumerate(zip(offsets, [*offsets[1:], length], strict=True)):
            yield base + 12 * number, base + offset, image[base + offset : base + end].rstrip(b"\0")


def place(image: bytes, path: bytes) -> tuple[int, int, int]:
    """Where *path* is: its inode, its directory entry and its name (offsets)."""
    (root,) = struct.unpack_from("<H", image, ROOT_NID)
    inode, entry, name_at = root * 32, 0, 0
    for wanted in path.split(b"/"):
        entry, name_at = next((e, n) for e, n, name in entries(image, inode) if name == wanted)
        inode = struct.unpack_from("<Q", image, entry)[0] * 32
    return inode, entry, name_at


def damaged() -> dict[str, bytes]:
    """Every damaged image under its name."""
    image = write_erofs(small_tree())
    root = struct.unpack_from("<H", image, ROOT_NID)[0] * 32

    def inode(path: bytes, field: int, new: bytes) -> bytes:
        return patched(image, place(image, path)[0] + field, new)

    def entry(path: bytes, field: int, new: bytes) -> bytes:
        return patched(image, place(image, path)[1] + field, new)

    def name(path: bytes, new: bytes) -> bytes:
        return patched(image, place(image, path)[2], new)

    def replaced(old: bytes, new: bytes) -> bytes:
        assert old in image and len(old) == len(new)
        return sealed(image.replace(old, new, 1))

    directory_nid = struct.pack("<Q", place(image, b"d")[0] // 32)
    redirect = b"overlay.redirect/"
    return {
        "empty": b"",
        "zeros": bytes(4096),
        "cut-short": image[:-1],
        "cut-to-half-a-block": image[:2048],
        "a-block-too-many": image + bytes(4096),
        "magic": patched(image, SUPER, b"\0"),
        "checksum": image[:2000] + b"\1" + image[2001:],
        "unknown-feature": patched(image, FEATURES, b"\6"),
        "extension-slots": patched(image, SUPER + 13, b"\1"),
        "block-size": patched(image, SUPER + 12, b"\x09"),
        "block-count": patched(image, BLOCKS, b"\2"),
        "inode-count": patched(image, INODES, b"\1"),
        "boot-sector": patched(image, 0, b"\xeb"),
        "root-out-of-bounds": patched(image, ROOT_NID, b"\xff\xff"),
        "root-in-superblock": patched(image, ROOT_NID, b"\x20\0"),
        "root-is-a-file": patched(
            image, ROOT_NID, struct.pack("<H", place(image, b"a")[0] // 32)
        ),
        "root-is-a-symlink": patched(image, root + MODE, struct.pack("<H", 0o120777)),
        "cycle": patched(entry(b"d/x", TYPE, b"\2"), place(image, b"d/x")[1], directory_nid),
        "directory-with-two-names": patched(
            entry(b"l", TYPE, b"\2"), place(image, b"l")[1], directory_nid
        ),
        "dot-leads-elsewhere": entry(b"d/.", NID, b"\x24"),
        "dot-dot-leads-elsewhere": entry(b"d/..", NID, directory_nid),
        "dot-is-a-file": entry(b"d/.", TYPE, b"\1"),
        "no-dot": name(b"d/.", b"-"),
        "nid-out-of-bounds": entry(b"a", NID, struct.pack("<Q", 128)),
        "nid-beyond-64-bits-of-bytes": entry(b"a", NID, struct.pack("<Q", 2**64 - 1)),
        "entry-of-wrong-type": entry(b"a", TYPE, b"\7"),
        "entry-of-unknown-type": entry(b"a", TYPE, b"\0"),
        "entry-reserved": entry(b"a", 11, b"\1"),
        "name-with-slash": name(b"l", b"/"),
        "name-with-nul": name(b"e", b"\0"),
        "name-empty": entry(b"d/x", 8, struct.pack("<H", 12 * 4 + 5)),
        "names-unsorted": name(b"l", b"b"),
        "name-twice": name(b"c", b"a"),
        "name-offset-zero": patched(image, root + 64 + 8, b"\0\0"),
        "name-offset-beyond": patched(image, root + 64 + 8, b"\xfc\x0f"),
        "directory-size-zero": inode(b"d", SIZE, bytes(8)),
        "directory-size-huge": inode(b"d", SIZE, struct.pack("<Q", 2**63)),
        "directory-crosses-its-block": inode(b"d", SIZE, struct.pack("<Q", 4000)),
        "directory-as-a-hole": inode(b"d", FORMAT, b"\x09"),
        "inode-compact": inode(b"a", FORMAT, b"\x08"),
        "inode-compressed": inode(b"a", FORMAT, b"\x03"),
        "inode-of-unknown-format": inode(b"a", FORMAT, b"\x29"),
        "inode-a-socket": inode(b"a", MODE, struct.pack("<H", 0o140644)),
        "inode-of-no-owner": inode(b"a", 24, b"\xff" * 4),
        "inode-reserved": inode(b"a", RESERVED + 15, b"\1"),
        "nanoseconds": inode(b"a", NANOSECONDS, struct.pack("<I", 10**9)),
        "links-of-a-file": inode(b"a", LINKS, b"\3"),
        "links-of-a-directory": inode(b"d", LINKS, b"\3"),
        "file-with-data": inode(b"d/x", FORMAT, b"\x01"),
        "file-with-a-block": replaced(b"\xff\xff\xff\xff", b"\0\0\0\0"),
        "file-with-odd-chunks": inode(b"a", UNION, b"\x20"),
        "file-too-large": inode(b"a", SIZE, struct.pack("<Q", 2**63 - 1)),
        "file-empty-with-content": inode(b"a", SIZE, bytes(8)),
        "file-without-content": inode(b"e", SIZE, b"\1"),
        "symlink-huge": inode(b"l", SIZE, struct.pack("<Q", 2**40)),
        "symlink-empty": inode(b"l", SIZE, bytes(8)),
        "symlink-with-nul": replaced(b"target", b"tar\0et"),
        "whiteout": inode(b"c", UNION, bytes(4)),
        "device-with-size": inode(b"c", SIZE, b"\1"),
        "xattrs-out-of-bounds": inode(b"a", XATTRS, b"\xff\xff"),
        "xattrs-cut": inode(b"a", XATTRS, b"\x10"),
        "xattrs-shared": patched(image, place(image, b"d")[0] + 64 + 4, b"\1"),
        "overlay-opaque": replaced(b"overlax.opaque", b"overlay.opaque"),
        "overlay-metacopy-missing": replaced(b"overlay.metacopy", b"overlax.metacopy"),
        "redirect-relative": replaced(redirect, b"overlay.redirect."),
        "redirect-elsewhere": replaced(redirect + image[image.index(redirect) + 17 :][:4],
                                       redirect + b"../."),
        "redirect-upper-case": _upper(image, redirect),
    }  # fmt: skip


def _upper(image: bytes, redirect: bytes) -> bytes:
    at = image.index(redirect) + len(redirect)
    return patched(image, at, image[at : at + 65].upper())


def main() -> None:
    """Write the corpus anew."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    (CORPUS / "ok-small.erofs").write_bytes(write_erofs(small_tree()))
    for name, image in damaged().items():
        (CORPUS / f"should-fail-{name}.erofs").write_bytes(image)


if __name__ == "__main__":
    main()

"""
A whole image as a tree of inodes under one root directory.

Pure value; reading is safe from any thread as long as nobody changes it.
Every walk is iterative, so depth costs no stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gear_plugin.digest import Digest
from gear_plugin.image.entry import Directory, Inode, Kind


@dataclass(frozen=True, slots=True)
class Totals:
    """
    How much a tree holds.

    `files`: regular-file inodes, empty ones too, a hard-linked one once.
    `directories`: the root included.  `others`: symlinks, devices, fifos.
    `objects` and `object_bytes`: distinct contents, and their bytes.
    """

    files: int
    directories: int
    others: int
    objects: int
    object_bytes: int


class Tree:
    """An image's files and directories; paths are bytes without a leading slash."""

    __slots__ = ("root",)

    def __init__(self, root: Directory | None = None) -> None:
        self.root = Directory() if root is None else root

    def lookup(self, path: bytes) -> Inode | None:
        """The inode at *path* (empty: the root), or None; symlinks are not followed."""
        node: Inode = self.root
        for name in path.split(b"/") if path else ():
            child = node.children.get(name) if isinstance(node, Directory) else None
            if child is None:
                return None
            node = child
        return node

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """
        Every path with its inode: the root first (as `b""`), a directory
        before what is in it, siblings by name.  Hard links come once a name.
        """
        yield b"", self.root
        stack = [(b"", self.root, iter(sorted(self.root.children)))]
        while stack:
            prefix, directory, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                continue
            node = directory.children[name]
            path = prefix + name
            yield path, node
            if isinstance(node, Directory):
                stack.append((path + b"/", node, iter(sorted(node.children))))

    def inodes(self) -> Iterator[Inode]:
        """Every inode once, the root first; order within is that of `walk`."""
        seen: set[Inode] = set()
        for _, node in self.walk():
            if node not in seen:
                seen.add(node)
                yield node

    def objects(self) -> dict[Digest, int]:
        """Every distinct content with its size in bytes, in the order of `walk`."""
        return {node.digest: node.size for node in self.inodes() if node.digest is not None}

    def totals(self) -> Totals:
        """Count the whole tree."""
        files = directories = others = 0
        objects: dict[Digest, int] = {}
        for node in self.inodes():
            if node.kind is Kind.FILE:
                files += 1
                if node.digest is not None:
                    objects[node.digest] = node.size
            elif node.kind is Kind.DIR:
                directories += 1
            else:
                others += 1
        return Totals(files, directories, others, len(objects), sum(objects.values()))

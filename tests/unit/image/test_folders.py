"""Finding a folder of an image as a process inside it would."""

from __future__ import annotations

import pytest

from gear_plugin.image import Directory, ErofsView, Inode, Kind, find_folder, write_erofs

from .trees import file, tree_of


def link(target: bytes) -> Inode:
    return Inode(Kind.SYMLINK, 0o777, 0, 0, 0, target=target)


@pytest.fixture(scope="module")
def view() -> ErofsView:
    chain = {b"c%d" % n: link(b"c%d" % (n + 1)) for n in range(41)}
    return ErofsView(
        write_erofs(
            tree_of(
                {
                    b"a/b/c": Directory(),
                    b"a/file": file(b"x"),
                    b"a/up": link(b"../../../../a/b"),
                    b"a/here": link(b"b/./c/"),
                    b"absolute": link(b"/a/b"),
                    b"root": link(b"/"),
                    b"twice": link(b"root/absolute/c"),
                    b"self": link(b"self"),
                    b"dangling": link(b"/a/none"),
                    b"to-file": link(b"a/file"),
                    b"\xff": Directory(),
                    **chain,
                    b"c41": Directory(),
                }
            )
        )
    )


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        (b"/", b"/"),
        (b"", b"/"),
        (b"/..", b"/"),
        (b"/../../a", b"/a"),
        (b"/a/b/c", b"/a/b/c"),
        (b"//a/./b//c/.", b"/a/b/c"),
        (b"/a/b/../b/c/..", b"/a/b"),
        (b"/a/up/c", b"/a/b/c"),
        (b"/a/here", b"/a/b/c"),
        (b"/a/here/..", b"/a/b"),
        (b"/absolute", b"/a/b"),
        (b"/root", b"/"),
        (b"/root/a/up", b"/a/b"),
        (b"/twice", b"/a/b/c"),
        (b"/c1", b"/c41"),
        (b"/\xff", b"/\xff"),
    ],
)
def test_links_are_followed_within_the_image(view: ErofsView, path: bytes, folder: bytes) -> None:
    """
    Absolute ones from its root, and `..` stays at the root.
    """
    assert find_folder(view, path) == folder


@pytest.mark.parametrize(
    "path",
    [b"/none", b"/a/file", b"/a/file/..", b"/a/none/..", b"/self", b"/dangling", b"/to-file"]
    + [b"/c0", b"/a/b/c/d", b"/" + b"x" * 300],
)
def test_what_is_no_folder_is_not_found(view: ErofsView, path: bytes) -> None:
    """
    Files, loops, more than 40 links, and names that are not there.
    """
    assert find_folder(view, path) is None

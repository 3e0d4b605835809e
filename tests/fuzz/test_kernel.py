"""What the reader accepts, the kernel reads the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gear_plugin.image import read_erofs
from gear_plugin.rootfs import mount_index, unmount
from tests.fuzz import kernel
from tests.unit.image.damage import CORPUS

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="needs erofs-utils"),
]


def test_accepted_images_are_what_the_kernel_shows(tmp_path: Path) -> None:
    """
    Random trees with inodes moved and bytes changed: whatever passes the
    structure check mounts, and every name, attribute and xattr agrees; an
    independent checker finds nothing either.
    """
    accepted = 0
    for number in range(400):
        try:
            accepted += kernel.try_image(number, tmp_path, fsck=number % 8 == 0)
        except Exception as error:
            raise AssertionError(f"case {number}") from error
    assert accepted > 130


def test_the_good_corpus_mounts(tmp_path: Path) -> None:
    """
    Every `ok-` index, as the reader reads it.
    """
    (tmp_path / "mounted").mkdir()
    for path in sorted(CORPUS.glob("ok-*")):
        mount_index(path, tmp_path / "mounted", loop=False)
        try:
            kernel.compare(read_erofs(path.read_bytes()), tmp_path / "mounted")
        finally:
            unmount(tmp_path / "mounted")

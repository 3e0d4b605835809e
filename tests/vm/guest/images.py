"""An image with every odd file, made here: its archive, its layer, its tree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gear_plugin.names import ImageId
from tests.engine import odd_files
from tests.unit.jobs import saves

_XATTRS = ("--xattrs", "--xattrs-include=*", "--numeric-owner")


def gear(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The `gear` command."""
    command = [sys.executable, "-m", "gear_plugin", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 or not check, f"gear {words}: {done.stdout}{done.stderr}"
    return done


def odd_tree(scratch: Path, *, large: bool = True) -> Path:
    """
    A folder of odd files, as GNU tar unpacks them: what an image of them has to show.

    *large*: with a file whose content is kept in chunks; emulated, hashing it takes time.
    """
    source, tree = scratch / "source", scratch / "tree"
    source.mkdir(parents=True)
    tree.mkdir()
    odd_files.ODD = os.fsencode(source) + b"/odd/"
    odd_files.MANY, odd_files.DEPTH, odd_files.LINKS = 300, 60, 50
    for part in ("names", "modes", "links", "symlinks", "contents", "folders"):
        getattr(odd_files, part)()
    if large:
        odd_files.write(odd_files.ODD + b"large", odd_files.noise(odd_files.LARGE))
    os.mknod(source / "odd/device", 0o600 | 0o020000, os.makedev(1, 3))
    os.mkfifo(source / "odd/fifo", 0o640)
    subprocess.run(
        [
            "tar",
            "--format=pax",
            *_XATTRS,
            "--sort=name",
            "-C",
            source,
            "-cf",
            scratch / "layer",
            ".",
        ],
        check=True,
    )
    subprocess.run(["tar", *_XATTRS, "-C", tree, "-xpf", scratch / "layer"], check=True)
    return tree


def archive(scratch: Path, image: ImageId) -> Path:
    """A `docker save` archive of *image*, whose layer `odd_tree` has left in *scratch*."""
    target = scratch / "saved.tar"
    target.write_bytes(saves.saved_by_20(str(image), [(scratch / "layer").read_bytes()]))
    return target

"""
What images are made of, fetched with the registries' ordinary clients.

Debian trees and packages, PyPI wheels, npm packages.  Each is kept under
build/images by the hash of what was asked for.  Containers have no network:
all of this is fetched by the host and shown to them.  Safe from any number of
threads and processes: each thing is made by one, behind a lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).parents[2] / "build" / "images"
SUITE = "bookworm"
PYTHON = "3.11"


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """`CACHE/name`, made by *make* at a temporary path if it is not there."""
    target = CACHE / name
    with locked(name):
        if not target.exists():
            partial = CACHE / f"new-{name}"
            _remove(partial)
            make(partial)
            partial.rename(target)
    return target


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock *name* against every thread and process that uses this cache."""
    locks = CACHE / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(*what: object) -> str:
    """A short name for *what*, by its repr."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def bootstrap(packages: tuple[str, ...]) -> Path:
    """The tar of a minimal Debian with *packages*."""

    def make(partial: Path) -> None:
        words = ["mmdebstrap", "-q", "--format=tar", "--variant=minbase"]
        _run(*words, f"--include={','.join(packages)}", SUITE, str(partial))

    return kept(f"base-{digest(packages, SUITE)}.tar", make)


def debs(base: Path, packages: tuple[str, ...]) -> Path:
    """A folder of the .deb files that the Debian tree *base* lacks to have *packages*."""

    def make(partial: Path) -> None:
        root = partial / "root"
        archives = partial / "archives"
        for folder in (root / "var/lib/apt/lists/partial", archives / "partial"):
            folder.mkdir(parents=True)
        # What the tree has, where its packages come from, and whom it trusts.
        parts = ("./var/lib/dpkg/status", "./etc/apt", "./usr/share/keyrings")
        _run("tar", "-xf", str(base), "-C", str(root), *parts)
        words = ["apt-get", "-q", "-o", f"Dir={root}", "-o", f"Dir::Cache::archives={archives}"]
        words += ["-o", f"Dir::State::status={root}/var/lib/dpkg/status"]
        words += ["-o", "APT::Sandbox::User=root"]
        _run(*words, "update")
        _run(*words, "install", "-y", "--no-install-recommends", "--download-only", *packages)
        shutil.rmtree(root)
        for path in archives.glob("*.deb"):
            path.rename(partial / path.name)
        shutil.rmtree(archives)

    return kept(f"debs-{digest(base.name, packages)}", make)


def wheels(packages: tuple[str, ...]) -> Path:
    """A folder of the wheels of *packages* and of all that they need."""

    def make(partial: Path) -> None:
        pip = [str(Path(sys.executable).parent / "pip"), "download", "-q", "-d", str(partial)]
        _run(*pip, "--only-binary=:all:", "--python-version", PYTHON, *packages)

    return kept(f"wheels-{digest(packages)}", make)


def node_modules(packages: tuple[str, ...]) -> Path:
    """A folder with `node_modules/` that has *packages* and all that they need."""

    def make(partial: Path) -> None:
        partial.mkdir()
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-save"]
        _run("npm", "install", "--prefix", str(partial), *options, *packages)

    return kept(f"npm-{digest(packages)}", make)


def busybox() -> Path:
    """A folder with Debian's static `bin/busybox`, which needs nothing else."""

    def make(partial: Path) -> None:
        partial.mkdir()
        options = ["-o", "APT::Sandbox::User=root"]
        subprocess.run(
            ["apt-get", "-q", *options, "download", "busybox-static"],
            cwd=partial,
            check=True,
            capture_output=True,
        )
        (package,) = partial.glob("*.deb")
        _run("dpkg-deb", "-x", str(package), str(partial / "tree"))
        (partial / "bin").mkdir()
        (partial / "tree/bin/busybox").rename(partial / "bin/busybox")
        shutil.rmtree(partial / "tree")
        package.unlink()

    return kept("busybox", make)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-1000:]}{done.stderr[-2000:]}"


def _remove(path: Path) -> None:
    """Take away what a crashed predecessor left."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

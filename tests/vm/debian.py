"""
What a machine boots: Debian's kernels and a small Debian with Python.

Kernels are unpacked, not installed.  Their packages come from suites that
this machine need not have: apt has a root of its own for each.  All of it is
kept under build/vm.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.engine import sources

BUILD = Path(__file__).parents[2] / "build" / "vm"
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

SUITES = {"6.1": "bookworm", "6.12": "trixie", "newest": "trixie-backports"}
"""Where each kernel is from; `newest` is whatever Debian has packaged last."""

KERNEL_PACKAGE = "linux-image-cloud-amd64"
"""A third of the other flavour's size; filesystems and network are the same."""

# What the tests use; modules that a kernel has built in, or has not, are passed over.
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_rng", "ext4", "crc32c_generic", "crc32c_intel"),
    *("overlay", "erofs", "fuse", "loop", "veth", "dummy"),
    *("nfs", "nfsv4", "nfsv3", "nfsd", "lockd", "rpcsec_gss_krb5", "dns_resolver"),
    *("md5", "hmac", "sha256_generic", "sha512_generic", "cbc", "cts", "libcrc32c", "crc16"),
)

PACKAGES = (
    *("python3", "libfuse2", "ca-certificates", "kmod", "iproute2", "mount", "procps"),
    *("nfs-kernel-server", "docker-registry"),
)
_NOT_NEEDED = ("mypy*", "ruff*", "grimp*", "pip*", "setuptools*", "*_editable_*")
ROOT_SIZE = "2G"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that can be booted."""

    version: str
    image: Path
    modules: Path
    """A folder with `lib/modules/<version>/` in it."""


def kernel(name: str) -> Kernel:
    """The kernel *name* of SUITES, downloaded if it is not here."""
    folder = BUILD / f"kernel-{name}"
    with sources.locked(f"vm-kernel-{name}"):
        if not folder.exists():
            partial = BUILD / f"new-kernel-{name}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _make_kernel(SUITES[name], partial)
            partial.rename(folder)
    return Kernel((folder / "version").read_text(), folder / "vmlinuz", folder / "modules")


def _make_kernel(suite: str, target: Path) -> None:
    scratch = target / "scratch"
    scratch.mkdir()
    tree = scratch / "tree"
    for package in _download(suite, scratch):
        _run("dpkg-deb", "-x", str(package), str(tree))
    # In /boot, or since 7.1 beside its modules.
    (image,) = tree.glob("**/vmlinuz*")
    (found,) = [path.parent for path in tree.glob("**/modules/*/kernel")]
    version = found.name
    image.rename(target / "vmlinuz")
    _run("depmod", "-b", str(_depmod_base(found, scratch / "all")), version)
    _copy_modules(scratch / "all/lib/modules" / version, target / "modules/lib/modules" / version)
    _run("depmod", "-b", str(target / "modules"), version)
    (target / "version").write_text(version)
    shutil.rmtree(scratch)


def _download(suite: str, folder: Path) -> list[Path]:
    """The packages that the suite's kernel is in."""
    root = folder / "apt"
    for name in ("etc/apt/preferences.d", "etc/apt/sources.list.d", "var/cache/apt"):
        (root / name).mkdir(parents=True)
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)
    status = root / "status"
    status.touch()
    line = f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n"
    (root / "etc/apt/sources.list").write_text(line)
    options = ["-q", "-o", f"Dir={root}", "-o", f"Dir::State::status={status}"]
    options += ["-o", "APT::Sandbox::User=root", "-o", "APT::Architecture=amd64"]
    _run("apt-get", *options, "update")
    image = next(
        name for name in _depends(options, KERNEL_PACKAGE) if name.startswith("linux-image-")
    )
    # Since 7.1 that one is empty, and others with the same version have its parts.
    version = image.removeprefix("linux-image-")
    names = [image, *(name for name in _depends(options, image) if name.endswith(version))]
    _run("apt-get", *options, "download", *names, cwd=folder)
    return list(folder.glob("*.deb"))


def _depends(options: list[str], package: str) -> list[str]:
    rows = _run("apt-cache", *options, "depends", package).splitlines()
    words = [row.replace("|", " ").split() for row in rows]
    return [row[1] for row in words if row[:1] == ["Depends:"]]


def _depmod_base(modules: Path, base: Path) -> Path:
    """The same modules where depmod looks for them."""
    (base / "lib/modules").mkdir(parents=True)
    modules.rename(base / "lib/modules" / modules.name)
    return base


def _copy_modules(source: Path, target: Path) -> None:
    """Those of MODULES and all that they need, unpacked."""
    target.mkdir(parents=True)
    for path in source.glob("modules.builtin*"):
        shutil.copy(path, target)
    if (source / "modules.order").exists():
        shutil.copy(source / "modules.order", target)
    for name in _needed(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".xz"):
            data = lzma.decompress((source / name).read_bytes())
            (target / name.removesuffix(".xz")).write_bytes(data)
        else:
            shutil.copy(source / name, target / name)


def _needed(source: Path) -> Iterator[str]:
    lines = (source / "modules.dep").read_text().splitlines()
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in lines)}
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    wanted = [by_name[name] for name in MODULES if name in by_name]
    done: set[str] = set()
    while wanted:
        path = wanted.pop()
        if path not in done:
            done.add(path)
            wanted += needs[path]
            yield path


def root_image() -> Path:
    """An ext4 image of a Debian with Python and this environment's packages in /opt/gear."""
    packages = Path(sysconfig.get_path("purelib"))
    told = sorted(path.name for path in packages.glob("*.dist-info"))
    name = f"root-{sources.digest(PACKAGES, told, sources.SUITE, _NOT_NEEDED)}.ext4"

    target = BUILD / name
    with sources.locked("vm-root"):
        if not target.exists():
            for old in BUILD.glob("root-*.ext4"):
                old.unlink()
            BUILD.mkdir(parents=True, exist_ok=True)
            partial = BUILD / "new-root"
            shutil.rmtree(partial, ignore_errors=True)
            _make_root(packages, partial, BUILD / "new-root.ext4")
            (BUILD / "new-root.ext4").rename(target)
    return target


def _make_root(packages: Path, tree: Path, image: Path) -> None:
    tree.mkdir(parents=True)
    _run("tar", "-xpf", str(sources.bootstrap(PACKAGES)), "-C", str(tree), "--numeric-owner")
    # With their compiled modules, which go by the sources' times.
    ignored = shutil.ignore_patterns(*_NOT_NEEDED)
    shutil.copytree(packages, tree / "opt/gear", symlinks=True, ignore=ignored)
    image.unlink(missing_ok=True)
    _run("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image), ROOT_SIZE)
    shutil.rmtree(tree)


def _run(*words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd)
    said = f"{' '.join(words)}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    assert done.returncode == 0, said
    return done.stdout

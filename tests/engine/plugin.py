"""
Making the managed plugin: wheels, Dockerfile.plugin, plugin/rootfs.

`python -m tests.engine.plugin` is `make plugin`.  Everything is cached under
build/ by the hash of what it is made from.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.engine.engine import Engine
from tests.engine.images import plugin_base

REPO = Path(__file__).parents[2]
BUILD = REPO / "build"
PLUGIN = REPO / "plugin"
ROOTFS = PLUGIN / "rootfs"


def build(engine: Engine) -> Path:
    """
    Make plugin/rootfs on *engine*, unless it is up to date.

    Returns the folder that `docker plugin create` takes.
    """
    stamp = BUILD / "plugin.stamp"
    wanted = _digest([REPO / "src", REPO / "Dockerfile.plugin", REPO / "pyproject.toml"])
    if stamp.exists() and stamp.read_text() == wanted and (ROOTFS / "opt/gear").is_dir():
        return PLUGIN
    _wheels()
    base = plugin_base(BUILD / "plugin-base.tar")
    engine.docker("import", str(base), "gear-plugin-base:1")
    engine.docker(
        *("build", "--build-arg", "BASE=gear-plugin-base:1", "-f", "Dockerfile.plugin"),
        *("-t", "gear-plugin:1", "--network", "none", str(REPO)),
    )
    engine.docker("create", "--name", "gear-plugin-export", "gear-plugin:1", "true")
    try:
        _export(engine)
    finally:
        engine.docker("rm", "gear-plugin-export")
    stamp.write_text(wanted)
    return PLUGIN


def publish(engine: Engine, ref: str) -> None:
    """
    Build the plugin on *engine* and push it to a registry as *ref*.

    Other plugins of that engine are removed first: docker refuses to create
    one whose content it has already.
    """
    folder = build(engine)
    for old in engine.docker("plugin", "ls", "-q", "--no-trunc").stdout.split():
        engine.docker("plugin", "rm", "-f", old)
    engine.docker("plugin", "create", ref, str(folder))
    engine.docker("plugin", "push", ref)


def _wheels() -> None:
    """Gear's wheel, always fresh, and those of its dependencies, once."""
    wheels = BUILD / "wheels"
    # --use-pep517: a dependency without a wheel is built where setuptools can make one.
    pip = [str(Path(sys.executable).parent / "pip"), "wheel", "-q", "--use-pep517"]
    pip += ["-w", str(wheels)]
    stamp = wheels / f".{_digest([REPO / 'pyproject.toml'])}"
    if not stamp.exists():
        shutil.rmtree(wheels, ignore_errors=True)
        subprocess.run([*pip, str(REPO)], check=True)
        stamp.touch()
    else:
        for old in wheels.glob("gear_plugin-*.whl"):
            old.unlink()
        subprocess.run([*pip, "--no-deps", str(REPO)], check=True)
    shutil.rmtree(REPO / "build" / "lib", ignore_errors=True)


def _export(engine: Engine) -> None:
    archive = BUILD / "plugin-rootfs.tar"
    engine.docker("export", "-o", str(archive), "gear-plugin-export")
    for entry in ROOTFS.iterdir():
        if entry.name != ".gitignore":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    subprocess.run(["tar", "-C", str(ROOTFS), "--numeric-owner", "-xpf", str(archive)], check=True)
    archive.unlink()


def _digest(paths: list[Path]) -> str:
    """The hash of every file below *paths*."""
    found = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(str(file.relative_to(REPO)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def main() -> None:
    """`make plugin`."""
    engine = Engine("plugin", BUILD / "engines" / "plugin")
    engine.start("overlay2")
    try:
        print(f"docker plugin create gear/graphdriver {build(engine)}")
    finally:
        engine.stop()


if __name__ == "__main__":
    main()

"""
Real images, made on a real engine from Debian packages, PyPI wheels and npm packages.

No image registry is needed: mmdebstrap makes the base; packages are installed
in a container without network, from files the host shows it, and committed as
a layer; the classic builder does the rest.  Each image is kept as a `docker
save` tar under build/images, named by the hash of its recipe, so a later run
only loads it.  `recipes` says which images there are.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.engine import odd_layers, sources
from tests.engine.engine import Engine
from tests.engine.recipes import BASE_PACKAGES, NAMES, RECIPES, TASKS, Recipe, Task
from tests.engine.sources import CACHE

__all__ = ["CACHE", "NAMES", "TASKS", "Task", "ensure", "plugin_base"]

PLUGIN_PACKAGES = ("python3", "python3-venv", "libfuse2", "ca-certificates")

# Packages come as files under /mnt, which every Debian tree has: no trace of them stays.
_INSTALL_DEBS = """\
set -e
export DEBIAN_FRONTEND=noninteractive
printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
apt-get install -y -q -o DPkg::Options::=--force-unsafe-io --no-install-recommends /mnt/*.deb
rm /usr/sbin/policy-rc.d
"""
_INSTALL_WHEELS = """\
set -e
python3 -m venv /opt/venv
/opt/venv/bin/pip install -q --no-compile --no-index --find-links /mnt "$@"
/opt/venv/bin/python -m compileall -q -j 2 /opt/venv/lib > /dev/null || true
"""


def ensure(engine: Engine, name: str) -> str:
    """Have the image *name* in *engine*; returns its reference.  Safe from several threads."""
    recipe = RECIPES[name]
    ref = f"gear-test/{name}:{recipe.digest}"
    if _has(engine, ref):
        return ref
    saved = CACHE / f"{name}-{recipe.digest}.tar"
    with sources.locked(f"{engine.name}-{name}"):
        if not saved.exists():
            below = ensure(engine, recipe.on) if recipe.on else _packages(engine, recipe)
            _build(engine, recipe, below, ref)
        sources.kept(saved.name, lambda partial: _save(engine, ref, partial))
        if not _has(engine, ref):
            engine.docker("load", "-q", "-i", str(saved))
    return ref


def plugin_base(target: Path) -> Path:
    """A Debian tree for the plugin's root filesystem, as a tar; made if it is not there."""
    del target  # the tar is named by what it holds
    return sources.bootstrap(PLUGIN_PACKAGES)


def _packages(engine: Engine, recipe: Recipe) -> str:
    """The image that the recipe's Dockerfile is built from; empty: it needs none."""
    if "{base}" not in recipe.dockerfile:
        return ""
    tree = sources.bootstrap(BASE_PACKAGES)
    ref = f"gear-test/base:{tree.stem.removeprefix('base-')}"
    with sources.locked(f"{engine.name}-base"):
        if not _has(engine, ref):
            engine.docker("import", str(tree), ref)
    if recipe.debs:
        ref = _installed(engine, ref, sources.debs(tree, recipe.debs), _INSTALL_DEBS)
    if recipe.wheels:
        found = sources.wheels(recipe.wheels)
        ref = _installed(engine, ref, found, _INSTALL_WHEELS, *recipe.wheels)
    return ref


def _installed(engine: Engine, base: str, folder: Path, script: str, *words: str) -> str:
    """*base* and one layer: what *script* does with *folder* at /mnt."""
    ref = f"gear-test/packages:{sources.digest(base, folder.name, script)}"
    with sources.locked(f"{engine.name}-{ref.rpartition(':')[2]}"):
        if _has(engine, ref):
            return ref
        options = ("--network", "none", "-v", f"{folder.resolve()}:/mnt:ro", "--entrypoint", "sh")
        command = (base, "-c", script, "sh", *words)
        made = engine.docker("create", *options, *command, timeout=1200).stdout.strip()
        try:
            engine.docker("start", "-a", made, timeout=1200)
            engine.docker("commit", "-c", "ENTRYPOINT []", "-c", 'CMD ["sh"]', made, ref)
        finally:
            engine.docker("rm", made)
    return ref


def _build(engine: Engine, recipe: Recipe, base: str, ref: str) -> None:
    with tempfile.TemporaryDirectory(prefix="gear-image-") as folder:
        context = Path(folder)
        for name, text in recipe.files:
            (context / name).write_text(text)
        if recipe.npm:
            modules = sources.node_modules(recipe.npm) / "node_modules"
            shutil.copytree(modules, context / "node_modules", symlinks=True)
        if not base:
            shutil.copytree(sources.busybox(), context, dirs_exist_ok=True)
        (context / "Dockerfile").write_text(recipe.dockerfile.replace("{base}", base))
        engine.docker("build", "--network", "none", "-t", ref, folder, timeout=1200)
        if recipe.layers:
            odd_layers.stack(engine, ref, recipe.layers, context)


def _save(engine: Engine, ref: str, target: Path) -> None:
    engine.docker("save", "-o", str(target), ref)


def _has(engine: Engine, ref: str) -> bool:
    return engine.docker("image", "inspect", ref, check=False).returncode == 0

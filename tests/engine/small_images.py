"""
Two small images with the same files, one ordinary and one Gear's, for tests that
start many containers: busybox, and files whose hashes are known.

`/cached` is read once on the node before anything is broken, `/late` is not.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.engine import images
from tests.engine.registry import Registry
from tests.engine.world import Gear, Node

CACHED, LATE = 24, 40
_DOCKERFILE = "FROM {tiny}\nCOPY files /\n"


@dataclass(frozen=True)
class SmallImages:
    """References in the registry."""

    plain: str
    gear: str

    @property
    def both(self) -> tuple[str, str]:
        return self.plain, self.gear

    def warm(self, node: Node) -> None:
        """Pull both, and have what is under `/cached`, and busybox, read on the node."""
        for ref in self.both:
            node.engine.docker("pull", "-q", ref)
            words = ("run", "--rm", "--network", "none", ref)
            node.engine.docker(*words, "sh", "-c", "sha256sum -c /cached.sums && cat /late.sums")


def make(gear: Gear, registry: Registry, name: str, seed: int) -> SmallImages:
    """Build, push and convert the image *name*; its files follow from *seed*."""
    tiny = images.ensure(gear.engine, "tiny")
    plain = f"{registry.address}/{name}:1"
    with tempfile.TemporaryDirectory(prefix="gear-small-") as scratch:
        context = Path(scratch)
        _files(context / "files", seed)
        (context / "Dockerfile").write_text(_DOCKERFILE.format(tiny=tiny))
        gear.engine.docker("build", "-q", "--network", "none", "-t", plain, scratch)
    gear.engine.docker("push", plain)
    gear("build", plain)
    converted = f"{registry.address}/{name}-gear:1"
    gear("push", converted)
    return SmallImages(plain, converted)


def _files(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    for kind, count in (("cached", CACHED), ("late", LATE)):
        (folder / kind).mkdir(parents=True)
        sums = []
        for number in range(count):
            path = folder / kind / f"f{number:03}"
            path.write_bytes(chance.randbytes(chance.randrange(1, 30_000)))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            sums.append(f"{digest}  /{kind}/{path.name}\n")
        (folder / f"{kind}.sums").write_text("".join(sums))

"""
Containers as the tests use them: started, looked into from the host, removed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engine.engine import Engine
from tests.engine.odd_layers import UNTIMED
from tests.engine.world import Node

DOCKERS_OWN = {
    "proc",
    "sys",
    "dev",
    ".dockerenv",
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/mtab",
}
"""What dockerd and runc put into every container; see `touched` for the times that this changes."""


@contextmanager
def running(engine: Engine, ref: str, *command: str) -> Iterator[str]:
    """A container of *ref* that runs *command*, or waits; removed at the end."""
    entry = ("--entrypoint", command[0]) if command else ("--entrypoint", "sleep")
    rest = command[1:] if command else ("900",)
    words = ("run", "-d", "--network", "none", "--user", "0", *entry, ref, *rest)
    name = engine.docker(*words).stdout.strip()
    try:
        yield name
    finally:
        engine.docker("rm", "-f", "-v", name)


def tree(engine: Engine, container: str) -> Path:
    """The container's root filesystem, as its own processes see it."""
    return Path(f"/proc/{engine.container_pid(container)}/root")


def touched(engine: Engine, ref: str) -> set[str]:
    """The directories whose times docker changes in every container of *ref*: by path."""
    found = engine.docker("image", "inspect", ref, "-f", "{{json .Config.Volumes}}").stdout
    volumes = [path.strip("/") for path in json.loads(found) or ()]
    return {".", "etc", *volumes, *UNTIMED}


def unexpected(found: list[str], engine: Engine, ref: str) -> list[str]:
    """The differences *found* between two containers of *ref*, without the times of `touched`."""
    allowed = tuple(f"{path.encode()!r}: mtime_ns " for path in touched(engine, ref))
    return [line for line in found if not line.startswith(allowed)]


def original(pushed: dict[str, str], name: str) -> str:
    """The reference of the image that *name* was built from."""
    return pushed[name].replace("-gear:", ":")


def pull(node: Node, ref: str) -> None:
    """`docker pull` on the node."""
    node.engine.docker("pull", ref)


def mount_id(node: Node, container: str) -> str:
    """The graph id of a container's layer."""
    data = json.loads(node.engine.docker("inspect", container).stdout)[0]["GraphDriver"]["Data"]
    return Path(data["MergedDir"]).parent.name


def content_of(root: Path, path: str) -> str:
    """The sha256 of a file inside a container; empty for what is no regular file."""
    file = root / path.lstrip("/")
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def runs(node: Node, ref: str) -> bool:
    """Whether a new container can be run."""
    words = ("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "true", ref)
    return node.engine.docker(*words, check=False).returncode == 0

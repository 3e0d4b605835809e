"""
Docker 26.1, the last version that takes storage drivers as plugins without being told to.

Debian trixie's docker.io, in a tree of its own under build/images that
mmdebstrap makes.  dockerd runs in a mount namespace that ends with it, and
whose root is that tree: it sees the host's /proc, /sys and /dev, its own two
folders, and what *shown* names.  A mere chroot would not do: `docker exec`
enters a container's mount namespace, and lands at that namespace's root, which
runc, from inside a chroot, cannot change; it would be the host's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.engine import sources
from tests.engine.engine import Engine, EngineError

SUITE = "trixie"
PACKAGES = ("docker.io", "ca-certificates")

_SCRIPT = """\
set -e
tree=$1 count=$2
shift 2
mount --make-rprivate /
mount --bind "$tree" "$tree"
for each in proc sys dev; do mount --rbind /$each "$tree/$each"; done
for each in run tmp; do mount -t tmpfs "$each" "$tree/$each"; done
while [ "$count" -gt 0 ]; do
    mkdir -p "$tree$1"
    mount --bind "$1" "$tree$1"
    shift
    count=$((count - 1))
done
cd "$tree"
pivot_root . mnt
exec chroot . sh -c 'umount -l /mnt && exec "$@"' sh "$@"
"""


class Engine26(Engine):
    """
    As Engine, with dockerd 26.1.

    Its mounts are not the host's: what is mounted for a container is seen
    through the container's processes only.
    """

    def __init__(
        self,
        name: str,
        workdir: Path,
        env: Mapping[str, str] | None = None,
        shown: tuple[Path, ...] = (),
    ) -> None:
        super().__init__(name, workdir, env)
        self._shown = shown

    def start(self, driver: str = "overlay2", *, wait_s: float = 60) -> None:
        """As Engine; its root is looked at before anything can be run in a container."""
        super().start(driver, wait_s=wait_s)
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/mountinfo").read_text().splitlines()
        roots = [line.split()[3] for line in lines if line.split()[4] == "/"]
        if [root.rpartition("/")[2] for root in roots] != [tree().name]:
            self.stop()
            raise EngineError(f"dockerd's root is {roots}, not a tree of its own")

    def _launch(self, command: list[str]) -> list[str]:
        folders = [str(path) for path in (self.workdir, self._sockets, *self._shown)]
        script = ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", str(tree())]
        return [*script, str(len(folders)), *folders, *command]


def tree() -> Path:
    """The tree with the engine; made if it is not there."""

    def make(partial: Path) -> None:
        words = ["mmdebstrap", "-q", "--format=directory", "--variant=minbase"]
        words += [f"--include={','.join(PACKAGES)}", SUITE, str(partial)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    return sources.kept(f"engine26-{sources.digest(PACKAGES, SUITE)}", make)

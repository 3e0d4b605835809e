"""
A private Docker engine: own data root, exec root, socket and pid file.

Never the host's.  A predecessor that crashed in the same folder is cleaned up
before a start: its processes by pid, after a look at their command lines, and
its mounts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.engine.netns import inside

_DOCKERD = "/usr/sbin/dockerd"


class EngineError(AssertionError):
    """The engine did not do as asked; carries what it said."""


class Engine:
    """
    One dockerd under *workdir*; *env* is added to its environment and to the client's.

    The socket lies in a short folder of its own, as socket paths are limited
    to 107 bytes; another clone's engine of the same name has another one.
    With *netns*, dockerd's traffic is that network namespace's.  With
    *live_restore*, which may be changed between two starts, containers outlive
    dockerd.
    """

    def __init__(
        self,
        name: str,
        workdir: Path,
        env: Mapping[str, str] | None = None,
        netns: str = "",
        *,
        live_restore: bool = False,
    ) -> None:
        self.name = name
        self.live_restore = live_restore
        self._netns = netns
        self.workdir = workdir.resolve()
        self.data_root = self.workdir / "data"
        own = hashlib.sha256(os.fsencode(self.workdir)).hexdigest()[:6]
        self._sockets = Path(tempfile.gettempdir()) / f"gear-engine-{name}-{own}"
        self.exec_root = self._sockets / "exec"
        self.host = f"unix://{self._sockets}/docker.sock"
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environ(self) -> dict[str, str]:
        """What a docker client of this engine needs in its environment."""
        config = self.workdir / "client"
        return {
            **self._env,
            "DOCKER_HOST": self.host,
            "DOCKER_CONFIG": str(config),
            "DOCKER_BUILDKIT": "0",
        }

    def start(self, driver: str = "overlay2", *, wait_s: float = 60) -> None:
        """Start dockerd on *driver* and wait until it answers; an earlier one is cleared away."""
        self.cleanup_predecessor()
        self.start_again(driver, wait_s=wait_s)

    def start_again(self, driver: str, *, wait_s: float = 60) -> None:
        """The same beside the containers, and plugins, of one that ended or was killed."""
        self._forget_dead_containerd()
        for folder in (self.workdir, self._sockets, self.workdir / "client"):
            folder.mkdir(parents=True, exist_ok=True)
        command = [_DOCKERD, "--experimental", "--data-root", str(self.data_root)]
        command += ["--exec-root", str(self.exec_root), "-H", self.host]
        command += ["-p", str(self.workdir / "pid"), "--bridge=none", "--iptables=false"]
        command += ["--storage-driver", driver]
        command += ["--live-restore"] if self.live_restore else []
        with (self.workdir / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._launch(command),
                stdout=log,
                stderr=log,
                env={**os.environ, **self._env},
            )
        deadline = time.monotonic() + wait_s
        while self.docker("version", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EngineError(f"dockerd did not come up on {driver}:\n{self.log_tail()}")
            time.sleep(0.2)

    def _launch(self, command: list[str]) -> list[str]:
        """How *command* is run, so that it has the process id that it would have by itself."""
        return inside(self._netns, command)

    def stop(self) -> None:
        """SIGTERM, and wait: containerd needs a few seconds."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self.cleanup_predecessor()

    def end(self) -> None:
        """SIGTERM to dockerd, and wait; what it leaves behind is left."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)
        self._process = None

    def kill(self) -> None:
        """kill -9 of dockerd alone; its containers and plugins go on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        time.sleep(0.5)  # its containerd ends a moment later
        (self.workdir / "pid").unlink(missing_ok=True)

    def restart(self, driver: str) -> None:
        """Stop and start on *driver*."""
        self.stop()
        self.start(driver)

    def remove(self) -> None:
        """Stop and delete everything."""
        self.stop()
        # Images have trees that are deeper than Python 3.11 removes.
        subprocess.run(["rm", "-rf", str(self.workdir), str(self._sockets)], check=True)

    def docker(
        self,
        *words: str,
        check: bool = True,
        timeout: float = 600,
        input: str | None = None,  # noqa: A002 - subprocess.run's word
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker client; a failure shows the command and what it said."""
        done = subprocess.run(
            ["docker", *words],
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            timeout=timeout,
            input=input,
            check=False,
        )
        if check and done.returncode:
            raise EngineError(
                f"docker {' '.join(words)}: status {done.returncode}\n"
                f"{done.stderr}{done.stdout[-2000:]}"
            )
        return done

    def container_pid(self, container: str) -> int:
        """The container's first process, as the host sees it."""
        return int(self.docker("inspect", container, "-f", "{{.State.Pid}}").stdout)

    def log_tail(self, lines: int = 40) -> str:
        """The end of dockerd's log, the plugin's lines included."""
        return "\n".join((self.workdir / "dockerd.log").read_text().splitlines()[-lines:])

    def cleanup_predecessor(self) -> None:
        """End what an earlier engine in this folder left: processes, mounts."""
        for process in self._leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for point in self._mounts():
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        (self.workdir / "pid").unlink(missing_ok=True)
        # containerd's pid file would make a new dockerd wait for the old one.
        shutil.rmtree(self.exec_root, ignore_errors=True)

    def _forget_dead_containerd(self) -> None:
        """
        Remove containerd's pid file when that process has ended: a killed dockerd
        takes it along, but one that nobody waited for would count as alive.
        """
        file = self.exec_root / "containerd/containerd.pid"
        with contextlib.suppress(FileNotFoundError):
            stat = Path(f"/proc/{int(file.read_text())}/stat")
            if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
                file.unlink()

    def _leftovers(self) -> list[int]:
        """
        Processes that are this engine's own: by the folders in their command
        line, or by the container or plugin id in their cgroup.
        """
        marks = (os.fsencode(self.workdir) + b"/", os.fsencode(self._sockets) + b"/")
        ids = [
            path.name
            for kind in ("containers", "plugins")
            for path in (self.data_root / kind).glob("[0-9a-f]*")
            if len(path.name) == 64
        ]
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes()
                    group = (entry / "cgroup").read_text()
                except OSError:
                    continue
                program = words.split(b"\0")[0].rpartition(b"/")[2]
                ours = (b"dockerd", b"containerd", b"containerd-shim-runc-v2")
                named = program in ours and any(mark in words for mark in marks)
                if named or any(own in group for own in ids):
                    found.append(int(entry.name))
        return found

    def _mounts(self) -> list[str]:
        """Mount points below this engine's folders, the latest first."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        folders = (f"{self.workdir}/", f"{self._sockets}/")
        return [point for point in points[::-1] if point.startswith(folders)]


def main() -> None:
    """`make clean`: end what crashed runs left below the folder that is named."""
    folder = Path(sys.argv[-1])
    for workdir in sorted(folder.iterdir()) if folder.is_dir() else ():
        Engine(workdir.name, workdir).cleanup_predecessor()


if __name__ == "__main__":
    main()

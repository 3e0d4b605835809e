"""A real etcd of a test's own: Debian's etcd-server on loopback, in a folder, stopped by pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.engine.netns import inside


class EtcdServer:
    """
    One member under *folder*; its ports stay the same from start to start.

    *tls*: a folder with `server.pem`, `server.key` and `ca.pem`.  It listens on
    *host*, an address of the network namespace *netns*.
    """

    def __init__(
        self,
        folder: Path,
        *words: str,
        tls: Path | None = None,
        host: str = "127.0.0.1",
        netns: str = "",
    ) -> None:
        if shutil.which("etcd") is None:
            # Where everything must run, a test that is left out is a failure.
            (pytest.fail if os.environ.get("CI") else pytest.skip)("etcd is not installed")
        self._folder = folder
        self._words = words
        self._tls = tls
        self._host, self._netns = host, netns
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self._peer_port = _free_port(), _free_port()

    def start(self) -> None:
        """Start it and wait until it serves."""
        self._folder.mkdir(parents=True, exist_ok=True)
        scheme = "https" if self._tls else "http"
        ours, peer = f"{scheme}://{self._host}:{self.port}", f"http://127.0.0.1:{self._peer_port}"
        command = ["etcd", "--name", "test", "--data-dir", str(self._folder / "data")]
        command += ["--listen-client-urls", ours, "--advertise-client-urls", ours]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"test={peer}", "--log-level", "warn", *self._words]
        if self._tls:
            command += ["--cert-file", str(self._tls / "server.pem")]
            command += ["--key-file", str(self._tls / "server.key")]
        log_file = self._folder / "log"
        with log_file.open("ab") as log:
            self._process = subprocess.Popen(inside(self._netns, command), stdout=log, stderr=log)
        # Nothing listens for clients before the member has joined its cluster.
        deadline_s = time.monotonic() + 60
        while True:
            if self._listens():
                return
            assert self._process.poll() is None, log_file.read_text()
            assert time.monotonic() < deadline_s, log_file.read_text()
            time.sleep(0.02)

    def _listens(self) -> bool:
        connect = f"exec 3<>/dev/tcp/{self._host}/{self.port}"
        command = inside(self._netns, ["bash", "-c", connect])
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def stop(self) -> None:
        """End it; what it holds stays for the next start."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """It is there and answers nobody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # Threads that are running stop a moment later, on a busy machine an answer later.
        tasks = Path(f"/proc/{self._process.pid}/task")
        while any(_state(task) != "T" for task in tasks.iterdir()):
            time.sleep(0.01)

    def resume(self) -> None:
        """After `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _state(task: Path) -> str:
    """The state of a thread, a letter (proc(5), /proc/pid/stat, field 3)."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]

"""
The network of a test cluster: a namespace for the manager and one for each
node, all on one bridge in a namespace of its own.

    gear-cluster-hub    the bridge
    gear-cluster-0      the manager, etcd, the registry    10.213.78.10
    gear-cluster-<n>    node n                             10.213.78.<10 + n>
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

_HUB = "gear-cluster-hub"
MOST = 9


def netns(number: int) -> str:
    """The namespace of a node; 0: the manager's."""
    return f"gear-cluster-{number}"


def address(number: int) -> str:
    """Its address."""
    return f"10.213.78.{10 + number}"


class Network:
    """The namespaces of the manager and *nodes* nodes, from `start` to `stop`."""

    def __init__(self, nodes: int) -> None:
        self._numbers = range(nodes + 1)

    def start(self) -> None:
        """Make them, after cleaning up what a crashed predecessor left."""
        self.stop()
        _run("ip", "netns", "add", _HUB)
        _run("ip", "-n", _HUB, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", _HUB, "link", "set", "bridge", "up")
        for number in self._numbers:
            name, port = netns(number), f"port{number}"
            _run("ip", "netns", "add", name)
            peer = ("peer", "name", "eth0", "netns", name)
            _run("ip", "link", "add", port, "netns", _HUB, "type", "veth", *peer)
            _run("ip", "-n", _HUB, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", name, "addr", "add", f"{address(number)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", device, "up")

    def stop(self) -> None:
        """End every process in the namespaces and remove them; fine if there are none."""
        for name in (*map(netns, range(MOST + 1)), _HUB):
            if Path("/run/netns", name).exists():
                _end_processes(name)
                _run("ip", "netns", "del", name)

    def cut(self, number: int) -> None:
        """Pull the plug of a node."""
        _run("ip", "-n", _HUB, "link", "set", f"port{number}", "down")

    def mend(self, number: int) -> None:
        """Put it back."""
        _run("ip", "-n", _HUB, "link", "set", f"port{number}", "up")


def _end_processes(name: str) -> None:
    deadline = time.monotonic() + 10
    while pids := [int(pid) for pid in _run("ip", "netns", "pids", name).split()]:
        assert time.monotonic() < deadline, f"processes in {name} do not end: {pids}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{' '.join(words)}: {done.stderr.strip()}"
    return done.stdout

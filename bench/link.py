"""
The wire between a node and its registry and store: two network namespaces and
a veth pair, shaped with `tc … tbf` in both directions.

    gear-bench-server   registry, builder, the store's file server    10.213.77.1
    gear-bench-node     the engines that are measured                 10.213.77.2

On the link `loopback` the nodes live in the server's namespace instead, so
nothing but its `lo` is between them, and the store is a plain directory.

The store crosses the link as a network filesystem: sshfs on bare TCP
(`directport`), with OpenSSH's sftp-server at the other end.  Why this one:
docs/benchmarks.md.  Everything that runs in the namespaces is the benchmark's
own, which is how a crashed predecessor is cleaned up.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.engine.netns import inside

SERVER, NODE = "gear-bench-server", "gear-bench-node"
SERVER_ADDRESS, NODE_ADDRESS = "10.213.77.1", "10.213.77.2"
_SERVER_PORT, _NODE_PORT = "gbench-s", "gbench-n"
_SFTP_PORT = 7001
_SFTP_SERVER = "/usr/lib/openssh/sftp-server"
# Four connections: on one, sshfs serves a file after the other (0.6 ms a small
# file, 0.4 ms on four).
_SSHFS = f"directport={_SFTP_PORT},ro,allow_other,max_conns=4"

_BURST_S = 0.005
_QUEUE_S = 0.020
_LEAST_BURST_BYTES = 3 * 1514


@dataclass(frozen=True)
class Tbf:
    """The parameters of a token bucket filter (tc-tbf(8))."""

    rate_bits: int
    burst_bytes: int
    limit_bytes: int

    @classmethod
    def of(cls, mbit: int) -> Tbf:
        """
        *mbit* Mbit/s with a bucket of 5 ms and a queue of 20 ms more.

        That is a switch's buffer, not a modem's: a transfer cannot make
        others wait for longer than 20 ms.
        """
        rate_bytes_s = mbit * 1_000_000 // 8
        burst = max(int(rate_bytes_s * _BURST_S), _LEAST_BURST_BYTES)
        return cls(mbit * 1_000_000, burst, burst + int(rate_bytes_s * _QUEUE_S))

    def words(self, device: str) -> list[str]:
        """The command that sets it on *device*."""
        qdisc = ["tc", "qdisc", "replace", "dev", device, "root", "tbf"]
        sizes = ["burst", str(self.burst_bytes), "limit", str(self.limit_bytes)]
        return [*qdisc, "rate", f"{self.rate_bits}bit", *sizes]


@dataclass(frozen=True)
class Link:
    """A link by name: `loopback`, `veth` (namespaces, unshaped) or `<n>mbit`."""

    name: str
    mbit: int = 0

    @classmethod
    def parse(cls, text: str) -> Link:
        """The link that *text* names; raises ValueError for anything else."""
        if text in ("loopback", "veth"):
            return cls(text)
        match = re.fullmatch(r"([1-9][0-9]{0,4})mbit", text)
        if match is None:
            raise ValueError(f"no such link: {text!r} (loopback, veth, or such as 100mbit)")
        return cls(text, int(match[1]))

    @property
    def is_wire(self) -> bool:
        """Whether node and server are apart."""
        return self.name != "loopback"

    @property
    def node_netns(self) -> str:
        """Where the nodes' dockerds run."""
        return NODE if self.is_wire else SERVER


class Network:
    """The two namespaces, from `start` to `stop`."""

    def start(self) -> None:
        """Make them, after cleaning up what a crashed predecessor left."""
        self.stop()
        for name in (SERVER, NODE):
            _run("ip", "netns", "add", name)
        ends = (
            (SERVER, _SERVER_PORT, SERVER_ADDRESS),
            (NODE, _NODE_PORT, NODE_ADDRESS),
        )
        peer = ("peer", "name", _NODE_PORT, "netns", NODE)
        _run("ip", "link", "add", _SERVER_PORT, "netns", SERVER, "type", "veth", *peer)
        for netns, device, address in ends:
            _run("ip", "-n", netns, "addr", "add", f"{address}/24", "dev", device)
            for name in ("lo", device):
                _run("ip", "-n", netns, "link", "set", name, "up")

    def stop(self) -> None:
        """End every process in the namespaces and remove them; fine if there are none."""
        for name in (SERVER, NODE):
            if Path("/run/netns", name).exists():
                _end_processes(name)
                _run("ip", "netns", "del", name)

    def shape(self, link: Link) -> None:
        """Set the rate of *link*, both ways."""
        for netns, device in ((SERVER, _SERVER_PORT), (NODE, _NODE_PORT)):
            _run(*inside(netns, ["tc", "qdisc", "del", "dev", device, "root"]), check=False)
            if link.mbit:
                _run(*inside(netns, Tbf.of(link.mbit).words(device)))

    def received_bytes(self) -> int:
        """What the node's end of the wire has received so far, headers included."""
        shown = _run("ip", "-n", NODE, "-s", "-j", "link", "show", "dev", _NODE_PORT)
        return int(json.loads(shown)[0]["stats64"]["rx"]["bytes"])


class StoreShare:
    """
    The store as the nodes of one link see it: `<folder>/store`.

    *folder* is a shared mount, so that what is mounted below it later reaches
    plugins that were started before.
    """

    def __init__(self, link: Link, store: Path, folder: Path) -> None:
        self._link = link
        self._store = store
        self._server: subprocess.Popen[bytes] | None = None
        self.folder = folder
        self._point = folder / "store"

    def start(self) -> None:
        """Share the store."""
        unmount_below(self.folder)
        self._point.mkdir(parents=True, exist_ok=True)
        _run("mount", "--bind", str(self.folder), str(self.folder))
        _run("mount", "--make-rshared", str(self.folder))
        if not self._link.is_wire:
            _run("mount", "--bind", str(self._store), str(self._point))
            return
        listen = f"TCP-LISTEN:{_SFTP_PORT},reuseaddr,fork,nodelay"
        command = inside(SERVER, ["socat", listen, f"EXEC:{_SFTP_SERVER} -R"])
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.remount()

    def remount(self) -> None:
        """Forget whatever the network filesystem has cached."""
        if not self._link.is_wire:
            return
        _run("umount", "-l", str(self._point), check=False)
        source = f"{SERVER_ADDRESS}:{self._store}"
        command = inside(NODE, ["sshfs", "-o", _SSHFS, source, str(self._point)])
        deadline = time.monotonic() + 10
        while subprocess.run(command, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "sshfs could not mount the store"
            time.sleep(0.1)

    def stop(self) -> None:
        """Unmount everything and end the server."""
        unmount_below(self.folder)
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
            self._server = None


def unmount_below(folder: Path) -> None:
    """Detach every mount on or below *folder*, the latest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    for point in points[::-1]:
        if point == str(folder) or point.startswith(f"{folder}/"):
            _run("umount", "-l", point, check=False)


def drop_caches() -> None:
    """Empty the page cache and the caches of names, of the whole machine."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def _end_processes(netns: str) -> None:
    deadline = time.monotonic() + 10
    while pids := list(_pids(netns)):
        assert time.monotonic() < deadline, f"processes in {netns} do not end: {pids}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _pids(netns: str) -> Iterator[int]:
    return map(int, _run("ip", "netns", "pids", netns).split())


def _run(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout

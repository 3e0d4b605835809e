"""
A kernel NFS server in a network namespace of its own, so that it can be
stopped, or cut off, without anything else noticing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

NAMESPACE = "server"
OUR_ADDRESS, ADDRESS = "10.9.0.1", "10.9.0.2"
LEASE_S = 10
"""Lease and grace: Linux' default is 90 s, in which a server that was started again opens
nothing new."""

_PREPARE = """
set -e
mount -t nfsd nfsd /proc/fs/nfsd
"""
_START = """
mkdir -p /run/rpc_pipefs /var/lib/nfs/nfsdcld /var/lib/nfs/v4recovery
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
modprobe nfsv4 || true
nfsdcld
exportfs -r
rpc.mountd -N 3
"""
_THREADS = f"rpc.nfsd -N 3 -G {LEASE_S} -L {LEASE_S}"


def sh(script: str) -> str:
    """What a shell says to *script*."""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return done.stdout


class NfsServer:
    """Exports folders of this machine to this machine; all methods return when it is done."""

    def __init__(self, *folders: Path) -> None:
        lines = [
            f"{folder} {OUR_ADDRESS}(rw,sync,no_root_squash,no_subtree_check,fsid={number})\n"
            for number, folder in enumerate(folders, 1)
        ]
        Path("/etc/exports").write_text("".join(lines))
        sh(
            f"ip netns add {NAMESPACE}; ip link add near type veth peer far netns {NAMESPACE};"
            f"ip addr add {OUR_ADDRESS}/24 dev near; ip link set near up"
        )
        self._in(
            f"ip link set lo up; ip addr add {ADDRESS}/24 dev far; ip link set far up;"
            + _PREPARE
            + _START
        )

    def start(self) -> None:
        """Have it serve."""
        self._in(f"{_PREPARE}{_THREADS} 4")

    def stop(self) -> None:
        """End its threads and connections; its machine goes on, and refuses new ones."""
        self._in(f"{_PREPARE}{_THREADS} 0")

    def cut_off(self) -> None:
        """Whatever is sent to it arrives, and no answer comes back."""
        self._in(f"ip route add blackhole {OUR_ADDRESS}/32")

    def connect(self) -> None:
        """Undo `cut_off`."""
        self._in(f"ip route del blackhole {OUR_ADDRESS}/32")

    def _in(self, script: str) -> None:
        done = subprocess.run(
            ["ip", "netns", "exec", NAMESPACE, "sh", "-c", script],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0, f"{script}: {done.stderr}"

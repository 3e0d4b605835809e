"""
The store's NFS export, mounted so that a dead server ends in errors.

NFSv4 needs no helper in user space, so mount(8) without mount.nfs is enough
(`-i`), and neither nodes nor the plugin need Debian's nfs-common.  NFSv3 does
need one (statd, mountd): who has only that mounts it himself and names the
folder as the store.

A server that hangs can hang whoever touches the mount.  Nothing here does:
what is mounted is read from the kernel's list, and mounting, unmounting and
asking for the server's address happen in processes that are given up.
Safe from any thread and any number of processes.

Options, see nfs(5); docs/nfs.md tells what was measured:

softerr           a request that the server does not answer ends in ETIMEDOUT;
                  `hard`, the default, waits for ever.  What soft mounts are
                  warned of, lost writes, cannot go unnoticed here: an object
                  gets its name after an fsync that succeeded, and is verified
                  by who reads it.
timeo=100         10 s (tenths of a second) to the first repetition,
retrans=2         two repetitions: 10 s * (1 + 2) = 30 s to the error.  Shorter,
                  and a busy disk's COMMIT of a large object fails a push; readers
                  do not wait for it, they go to the next source after
                  `fetch_stall_s` (8 s) without a byte.
lookupcache=pos   "no such object" is asked again each time; the default believes
                  it for up to 60 s after another machine pushed the object.
nosuid,nodev,noexec   objects are data.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from gear_plugin.content.nfs_address import DEFAULT_PORT, NfsAddress
from gear_plugin.errors import Conflict, MountFailed, SourceUnavailable, TimedOut
from gear_plugin.jobs.given_up import Commands, Ended
from gear_plugin.jobs.mount_table import Mounted, mounts_at

OPTIONS = "softerr,timeo=100,retrans=2,lookupcache=pos,nosuid,nodev,noexec"
VERSIONS = ("4.2", "4.1", "4.0")
"""In the order in which they are tried; Linux has had 4.2 since 3.18."""

_KINDS = ("nfs", "nfs4")
_POLL_S = 0.05
_OLD_PROTOCOL = re.compile(r"Protocol not supported|requested NFS version", re.IGNORECASE)
_UNREACHABLE = re.compile(
    r"Connection (refused|timed out|reset)|No route to host|(Network|Host) is (unreachable|down)"
)
_commands = Commands()


@dataclass(frozen=True, slots=True)
class System:
    """What mounting uses of the machine; tests bring their own."""

    mount: Sequence[str] = ("mount",)
    unmount: Sequence[str] = ("umount",)
    resolve: Sequence[str] = ("getent", "ahosts")
    mounts_at: Callable[[Path], list[Mounted]] = mounts_at
    commands: Commands = field(default_factory=lambda: _commands)


def ensure_mounted(
    address: NfsAddress,
    target: Path,
    timeout_s: float,
    *,
    read_only: bool = True,
    system: System | None = None,
) -> None:
    """
    Have the export *address* mounted on *target*; returns or raises within *timeout_s*.

    Safe to repeat.  An export that is there already is left as it is, whoever
    mounted it.  Another one, or one that may not be written but is to be, is
    replaced: the old mount goes when its last reader does.

    Raises:
        Conflict: something that is no NFS is mounted there.
        TimedOut: the server, or the name server, does not answer.
        SourceUnavailable: the server's machine refuses, or cannot be reached.
        MountFailed: the server or the kernel does not want it so.
    """
    attempt = _Attempt(address, target, timeout_s, read_only, system or System())
    with attempt.alone():
        if not attempt.is_there():
            attempt.mount()


def unmount(target: Path, timeout_s: float, *, system: System | None = None) -> None:
    """
    Take the NFS mounts off *target*, at once for everybody who comes later;
    nothing happens if there is none.

    Raises TimedOut, MountFailed; Conflict: it is no NFS.
    """
    attempt = _Attempt(None, target, timeout_s, True, system or System())
    with attempt.alone():
        while attempt.on_target() is not None:
            attempt.detach()


class _Attempt:
    """One call."""

    def __init__(
        self,
        address: NfsAddress | None,
        target: Path,
        timeout_s: float,
        read_only: bool,
        system: System,
    ) -> None:
        self._address = address
        self._target = Path(os.path.realpath(target.parent)) / target.name
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._read_only = read_only
        self._system = system

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else mounts on the target meanwhile: two would mount on one another."""
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            lock = self._target.with_name(f".{self._target.name}.lock").open("w")
        except OSError as error:
            raise MountFailed(f"{self._target}: {error.strerror}; run it as root") from error
        with lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= self._deadline_s:
                        raise TimedOut(f"{self._target} is being mounted by another") from None
                    time.sleep(_POLL_S)
            yield

    def on_target(self) -> Mounted | None:
        """The NFS mount that is there; raises Conflict for anything else."""
        found = next(iter(self._system.mounts_at(self._target)[::-1]), None)
        if found is not None and found.kind not in _KINDS:
            raise Conflict(
                f"{self._target} holds {found.kind} from {found.source}; unmount it,"
                " or name that folder as the store"
            )
        return found

    def is_there(self) -> bool:
        """Whether nothing is to be done; what is in the way is gone afterwards."""
        while (found := self.on_target()) is not None:
            if self._is_ours(found):
                return True
            self.detach()
        return False

    def _is_ours(self, found: Mounted) -> bool:
        assert self._address is not None
        port = int(found.options.get("port") or DEFAULT_PORT)
        may_write = self._read_only or not found.is_read_only
        return (found.source, port) == (self._address.source, self._address.port) and may_write

    def detach(self) -> None:
        """
        `umount -l`: the names are gone at once, even if the server is; the
        process may then wait for the server until the options' limit.
        """
        before = self._count()
        command = [*self._system.unmount, "-i", "-l", str(self._target)]
        try:
            is_gone = self._system.commands.run_until(
                lambda: self._count() < before, f"unmount {self._target}", command, self._deadline_s
            )
        except OSError as error:
            raise MountFailed(f"cannot run {command[0]}: {error.strerror}") from error
        if not is_gone:
            raise MountFailed(f"cannot unmount {self._target}; try `umount -l` as root")

    def _count(self) -> int:
        return len(self._system.mounts_at(self._target))

    def mount(self) -> None:
        """Try the server's addresses and the protocol's versions."""
        # Only now: a folder on which a dead server is mounted must not be touched.
        try:
            self._target.mkdir(exist_ok=True)
        except OSError as error:
            raise MountFailed(f"cannot make {self._target}: {error.strerror}") from error
        ended = None
        for ip in self._addresses():
            for version in VERSIONS:
                ended = self._mount_once(ip, version)
                if ended.status == 0 and self.on_target() is not None:
                    return
                if not _OLD_PROTOCOL.search(ended.said):
                    break
        raise self._failure(ended)

    def _addresses(self) -> list[str]:
        assert self._address is not None
        host = self._address.host
        if _is_number(host):
            return [host]
        ended = self._run("asking for the address", [*self._system.resolve, host])
        rows = [line.split() for line in ended.output.splitlines()]
        found = list(dict.fromkeys(row[0] for row in rows if row))
        if ended.status != 0 or not found:
            raise SourceUnavailable(f"store {self._address}: the host's name is not known here")
        return found

    def _mount_once(self, ip: str, version: str) -> Ended:
        assert self._address is not None
        words = ["ro" if self._read_only else "rw", OPTIONS, f"vers={version}", f"addr={ip}"]
        if self._address.port != DEFAULT_PORT:
            words.append(f"port={self._address.port}")
        return self._run(
            "mounting",
            [
                *(*self._system.mount, "-i", "-t", "nfs4", "-o", ",".join(words)),
                *(self._address.source, str(self._target)),
            ],
        )

    def _run(self, doing: str, command: Sequence[str]) -> Ended:
        try:
            return self._system.commands.run(f"{doing} {self._target}", command, self._deadline_s)
        except TimedOut as error:
            raise TimedOut(
                f"store {self._address}: {doing} takes more than {self._timeout_s:g} s ({error});"
                " is its server up and reachable?"
            ) from error
        except OSError as error:
            raise MountFailed(f"cannot run {command[0]}: {error.strerror}") from error

    def _failure(self, ended: Ended | None) -> MountFailed | SourceUnavailable:
        said = ended.said if ended and ended.said else "mount(8) did nothing and said nothing"
        said = said.partition("; dmesg(1)")[0].removesuffix(".")
        what = f"store {self._address}: {said}"
        if _UNREACHABLE.search(said):
            return SourceUnavailable(f"{what}; is its server up and reachable?")
        if _OLD_PROTOCOL.search(said):
            return MountFailed(
                f"{what}; Gear mounts NFSv4: mount it yourself and name the folder as the store"
            )
        return MountFailed(f"{what}; does it export that path to this machine?")


def _is_number(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ip_address(host)
        return True
    return False

"""Mounting a store, with commands that behave as mount(8) does; tests/vm has the real thing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gear_plugin.content.nfs_address import NfsAddress
from gear_plugin.errors import Conflict, GearError, MountFailed, SourceUnavailable, TimedOut
from gear_plugin.jobs import given_up
from gear_plugin.jobs.given_up import Commands
from gear_plugin.jobs.mount_table import mounts_at
from gear_plugin.jobs.nfs_mount import OPTIONS, System, ensure_mounted, unmount
from tests.waiting import eventually

STORE = NfsAddress.parse("nfs://10.0.0.1/srv/gear")
OTHER = NfsAddress.parse("nfs://10.0.0.2:2050/other")
LONG_S = 60.0

_MOUNT = """\
#!/bin/sh
echo "$@" >> {base}/log
{fault}
for word in "$@"; do source=$target; target=$word; options=$last; last=$word; done
case "$5" in ro,*) how=ro;; *) how=rw;; esac
port=$(echo "$5" | grep -o 'port=[0-9]*')
echo "1 2 0:3 / $target $how - nfs4 $source $how,vers=4.2,$port" >> {base}/table
"""
_UNMOUNT = """\
#!/bin/sh
echo "unmount $@" >> {base}/log
sed -i '$d' {base}/table
{fault}
"""
_RESOLVE = """\
#!/bin/sh
{fault}
echo "10.1.1.1 STREAM $2"
echo "10.1.1.1 DGRAM"
echo "fd00::1 STREAM"
"""


class Machine:
    """A kernel's list of mounts in a file, and the commands that change it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.target = base / "root/nfs"
        self.table = base / "table"
        self.table.touch()
        (base / "log").touch()
        self.system = System(
            mount=[self.command("mount", _MOUNT)],
            unmount=[self.command("unmount", _UNMOUNT)],
            resolve=[self.command("resolve", _RESOLVE), "ahosts"],
            mounts_at=lambda target: mounts_at(target, self.table),
            commands=Commands(),
        )

    def command(self, name: str, script: str, fault: str = "") -> str:
        """Write the command *name*, which first does *fault*."""
        path = self.base / name
        path.write_text(script.format(base=self.base, fault=fault))
        path.chmod(0o755)
        return str(path)

    def mount(
        self, address: NfsAddress = STORE, timeout_s: float = LONG_S, *, read_only: bool = True
    ) -> None:
        ensure_mounted(address, self.target, timeout_s, read_only=read_only, system=self.system)

    def holds(self, kind: str, source: str, options: str = "rw") -> None:
        """Have something on the target already."""
        with self.table.open("a") as file:
            file.write(f"1 2 0:3 / {self.target} {options} - {kind} {source} {options}\n")

    def log(self) -> list[str]:
        """What the commands were called with."""
        return (self.base / "log").read_text().splitlines()

    def sources(self) -> list[str]:
        """What is on the target, the topmost last."""
        return [mounted.source for mounted in mounts_at(self.target, self.table)]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.system.commands.close()


def test_a_store_is_mounted_once(machine: Machine) -> None:
    """
    Without a helper, by address, with all options; asking again does nothing.
    """
    machine.mount()
    machine.mount()
    assert machine.log() == [
        f"-i -t nfs4 -o ro,{OPTIONS},vers=4.2,addr=10.0.0.1 10.0.0.1:/srv/gear {machine.target}"
    ]
    assert machine.sources() == ["10.0.0.1:/srv/gear"]
    assert machine.target.is_dir()


def test_for_writing_and_at_another_port(machine: Machine) -> None:
    """
    What the address and the caller say is what the kernel is told.
    """
    machine.mount(OTHER, read_only=False)
    (line,) = machine.log()
    assert line.split()[4] == f"rw,{OPTIONS},vers=4.2,addr=10.0.0.2,port=2050"
    machine.mount(OTHER, read_only=False)
    machine.mount(OTHER)
    assert len(machine.log()) == 1


@pytest.mark.parametrize(
    ("source", "options"),
    [("10.0.0.1:/old", "rw"), ("10.0.0.1:/srv/gear", "ro"), ("10.0.0.1:/srv/gear", "rw,port=2050")],
)
def test_another_mount_is_replaced(machine: Machine, source: str, options: str) -> None:
    """
    Another export, a read-only mount where one is to write, another server on the host.
    """
    machine.target.mkdir(parents=True)
    machine.holds("nfs4", source, options)
    machine.mount(read_only=False)
    assert machine.sources() == ["10.0.0.1:/srv/gear"]
    assert machine.log()[0] == f"unmount -i -l {machine.target}"


def test_a_mount_of_somebody_else_is_left(machine: Machine) -> None:
    """
    The right export is used whoever mounted it; what is no NFS is never taken away.
    """
    machine.holds("nfs", STORE.source)
    machine.mount(read_only=False)
    assert machine.log() == []
    machine.holds("ext4", "/dev/sdb1")
    with pytest.raises(Conflict, match="holds ext4 from /dev/sdb1"):
        machine.mount()
    with pytest.raises(Conflict):
        unmount(machine.target, LONG_S, system=machine.system)
    assert machine.log() == []


def test_a_target_that_hangs_is_never_touched(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A dead server's mount is found, kept or replaced by the kernel's list alone.
    """
    machine.holds("nfs4", STORE.source, "ro")
    touched = []

    def guarded(name: str) -> Callable[..., object]:
        original = getattr(Path, name)

        def call(path: Path, *words: object, **more: object) -> object:
            if path == machine.target:
                touched.append(name)
            return original(path, *words, **more)

        return call

    for name in ("mkdir", "stat", "lstat", "open", "exists", "is_dir", "resolve", "iterdir"):
        monkeypatch.setattr(Path, name, guarded(name))
    machine.mount()
    unmount(machine.target, LONG_S, system=machine.system)
    assert touched == []


def test_a_server_that_hangs_is_given_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    In time, whatever the command does.
    """
    monkeypatch.setattr(given_up, "_REAP_S", LONG_S)
    machine.command("mount", _MOUNT, "trap '' TERM; exec sleep 600")
    began_s = time.monotonic()
    with pytest.raises(TimedOut, match=r"mounting takes more than 0.5 s.*is its server up"):
        machine.mount(timeout_s=0.5)
    assert time.monotonic() - began_s < LONG_S / 2
    machine.command("mount", _MOUNT)
    machine.mount()
    assert machine.sources() == [STORE.source]


def test_a_name_server_that_hangs_is_given_up(machine: Machine) -> None:
    """
    The same, before any mounting.
    """
    machine.command("resolve", _RESOLVE, "exec sleep 600")
    with pytest.raises(TimedOut, match="asking for the address"):
        machine.mount(NfsAddress.parse("nfs://store/a"), timeout_s=0.5)
    assert machine.log() == []


def test_a_host_has_several_addresses(machine: Machine) -> None:
    """
    Each is tried once, in the resolver's order, until one answers.
    """
    fault = 'case "$5" in *addr=10.*) echo "mount: x: No route to host." >&2; exit 32;; esac'
    machine.command("mount", _MOUNT, fault)
    machine.mount(NfsAddress.parse("nfs://store/a"))
    tried = [line.split("addr=")[1].split()[0] for line in machine.log()]
    assert tried == ["10.1.1.1", "fd00::1"]
    assert machine.sources() == ["store:/a"]


def test_an_unknown_host_is_said(machine: Machine) -> None:
    """
    As one that may be known later.
    """
    machine.command("resolve", _RESOLVE, "exit 2")
    with pytest.raises(SourceUnavailable, match="nfs://store/a: the host's name is not known"):
        machine.mount(NfsAddress.parse("nfs://store/a"))


def test_older_protocols_are_tried(machine: Machine) -> None:
    """
    4.2, 4.1, 4.0; a server that has none of them is told from one that refuses.
    """
    old = 'echo "mount: x: mount(2) system call failed: Protocol not supported." >&2; exit 32'
    machine.command("mount", _MOUNT, f'case "$5" in *vers=4.0*) ;; *) {old};; esac')
    machine.mount()
    assert [line.split("vers=")[1][:3] for line in machine.log()] == ["4.2", "4.1", "4.0"]
    unmount(machine.target, LONG_S, system=machine.system)
    machine.command("mount", _MOUNT, old)
    with pytest.raises(MountFailed, match="Gear mounts NFSv4: mount it yourself"):
        machine.mount()


@pytest.mark.parametrize(
    ("said", "kind", "hint"),
    [
        ("Connection refused.", SourceUnavailable, "is its server up"),
        ("No route to host.", SourceUnavailable, "is its server up"),
        ("Connection timed out.", SourceUnavailable, "is its server up"),
        ("permission denied.", MountFailed, "does it export that path"),
        ("special device h:/a does not exist.", MountFailed, "does it export that path"),
    ],
)
def test_why_it_was_refused_is_said(
    machine: Machine, said: str, kind: type[GearError], hint: str
) -> None:
    """
    One line: mount's own words, without its hint at dmesg, and what to look at.
    """
    more = "dmesg(1) may have more information after failed mount system call."
    machine.command("mount", _MOUNT, f"echo 'mount: x: {said}' >&2; echo '  {more}' >&2; exit 32")
    with pytest.raises(kind, match=hint) as caught:
        machine.mount()
    assert str(caught.value).startswith(f"store {STORE}: mount: x: {said[:-1]};")
    assert "dmesg" not in str(caught.value)


def test_a_mount_that_did_nothing_is_an_error(machine: Machine) -> None:
    """
    The kernel's list decides, not the command's status.
    """
    machine.command("mount", "#!/bin/sh\n{fault}", "exit 0")
    with pytest.raises(MountFailed, match="did nothing and said nothing"):
        machine.mount()


def test_a_command_that_is_missing_is_said(machine: Machine) -> None:
    """
    In a plugin image without mount(8), for one.
    """
    (machine.base / "mount").unlink()
    with pytest.raises(MountFailed, match=r"cannot run .*mount: No such file"):
        machine.mount()


def test_two_at_once_make_one_mount(machine: Machine) -> None:
    """
    The second waits for the first, and finds it done.
    """
    machine.command("mount", _MOUNT, f"until [ -e {machine.base}/go ]; do sleep 0.02; done")
    other = System(
        machine.system.mount,
        machine.system.unmount,
        machine.system.resolve,
        machine.system.mounts_at,
        Commands(),
    )
    threads = [
        threading.Thread(
            target=ensure_mounted, args=(STORE, machine.target, LONG_S), kwargs={"system": system}
        )
        for system in (machine.system, other)
    ]
    for thread in threads:
        thread.start()
    try:
        eventually(machine.log, "one of them mounts", timeout_s=LONG_S)
        with pytest.raises(TimedOut, match="is being mounted by another"):
            machine.mount(timeout_s=0.2)
    finally:
        (machine.base / "go").touch()
        for thread in threads:
            thread.join()
        other.commands.close()
    assert len(machine.log()) == 1


def test_unmounting_does_not_wait_for_the_server(machine: Machine) -> None:
    """
    The name is gone; the command that hangs is left behind. Nothing there: nothing done.
    """
    machine.mount()
    machine.holds("nfs4", "10.0.0.9:/below")
    machine.command("unmount", _UNMOUNT, "exec sleep 600")
    began_s = time.monotonic()
    unmount(machine.target, LONG_S, system=machine.system)
    assert time.monotonic() - began_s < LONG_S / 2
    assert machine.sources() == []
    unmount(machine.target, LONG_S, system=machine.system)
    assert sum(line.startswith("unmount") for line in machine.log()) == 2


def test_a_mount_that_cannot_be_taken_away_is_said(machine: Machine) -> None:
    """
    Not root, for one.
    """
    machine.holds("nfs4", "h:/a")
    machine.command("unmount", "#!/bin/sh\n{fault}", "exit 32")
    with pytest.raises(MountFailed, match="cannot unmount"):
        unmount(machine.target, LONG_S, system=machine.system)

"""
Boots a virtual machine, runs one command in it, and tells how that ended.

What the machine writes goes nowhere: its disk is a snapshot.  It has no
network.  All that comes out is its serial console, line by line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.engine import sources
from tests.vm.debian import BUILD, Kernel, root_image

REPO = Path(__file__).parents[2]
_PARTS = ("src", "tests", "docs", "pyproject.toml")
_STATUS = "machine: status "


@dataclass(frozen=True, slots=True)
class Run:
    """One machine's life."""

    status: int | None
    """With which the command ended; None: the machine died or was switched off before."""
    lines: list[str]
    seconds: float


def run(kernel: Kernel, command: str, *, timeout_s: float, memory_mib: int = 1024) -> Run:
    """
    Boot *kernel* and run the shell's *command* in /gear, a copy of this repository.

    The console is shown on stdout and kept in build/vm/<version>.log.
    """
    disk = root_image()
    scratch = BUILD / f"run-{os.getpid()}"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        initrd = _initrd(kernel, command, scratch)
        words = _qemu(kernel, disk, initrd, memory_mib)
        return _watched(words, scratch, BUILD / f"{kernel.version}.log", timeout_s)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _qemu(kernel: Kernel, disk: Path, initrd: Path, memory_mib: int) -> list[str]:
    # Emulated unless asked otherwise: a /dev/kvm inside another virtual machine
    # may be there and not work.
    accel = os.environ.get("GEAR_VM_ACCEL", "tcg")
    words = ["nice", "-n", "15", "qemu-system-x86_64", "-accel", accel]
    words += ["-cpu", "max" if accel == "tcg" else "host", "-smp", "1", "-m", str(memory_mib)]
    words += ["-no-reboot", "-nodefaults"]
    words += ["-display", "none", "-serial", "stdio", "-net", "none"]
    words += ["-device", "virtio-rng-pci"]
    words += ["-drive", f"file={disk},if=virtio,format=raw,snapshot=on"]
    words += ["-kernel", str(kernel.image), "-initrd", str(initrd)]
    # no_timer_check: on a busy host the emulated timer may be late, and that is no reason to panic.
    return [
        *words,
        "-append",
        "console=ttyS0 quiet panic=-1 oops=panic mitigations=off no_timer_check",
    ]


def _initrd(kernel: Kernel, command: str, scratch: Path) -> Path:
    """The first filesystem: busybox, the kernel's modules, the code, the command."""
    tree = scratch / "initrd"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(sources.busybox() / "bin/busybox", tree / "bin/busybox")
    shutil.copy(Path(__file__).with_name("init.sh"), tree / "init")
    (tree / "init").chmod(0o755)
    shutil.copytree(kernel.modules, tree, dirs_exist_ok=True)
    for part in _PARTS:
        source = REPO / part
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
            shutil.copytree(source, tree / "gear" / part, ignore=ignored, symlinks=True)
        else:
            shutil.copy(source, tree / "gear" / part)
    # Compiled here, by the same version of Python, which takes a second instead of a minute.
    words = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(tree / "gear")]
    subprocess.run([sys.executable, *words], check=True)
    (tree / "gear/command").write_text(command + "\n")
    target = scratch / "initrd.cpio"
    with target.open("wb") as out:
        subprocess.run(
            "find . -print0 | cpio --null --create --format=newc --quiet --owner=0:0",
            shell=True,
            cwd=tree,
            stdout=out,
            check=True,
        )
    return target


def _watched(words: list[str], scratch: Path, log: Path, timeout_s: float) -> Run:
    lines: list[str] = []
    began_s = time.monotonic()
    # Its snapshot of the disk is a temporary file.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with (
        subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        ) as process,
        log.open("w", buffering=1) as file,
    ):
        switch_off = threading.Timer(timeout_s, process.kill)
        switch_off.start()
        try:
            assert process.stdout is not None
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip("\r\n")
                lines.append(line)
                file.write(line + "\n")
                print(f"  | {line}", file=sys.stdout, flush=True)
        finally:
            switch_off.cancel()
            process.kill()
    told = [line.partition(_STATUS)[2] for line in lines if line.startswith(_STATUS)]
    status = int(told[-1]) if told and told[-1].isdigit() else None
    return Run(status, lines, time.monotonic() - began_s)

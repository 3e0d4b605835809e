"""
Running the structure check (`confined.check`) in a process that may die.

What a registry sent is not trusted, and the check reads all of it: the kernel
bounds that process's memory and time, and whatever happens to it, the index is
then not mounted.  Thread-safe.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gear_plugin import wire
from gear_plugin.errors import IndexDamaged, TimedOut
from gear_plugin.layers import helper


@dataclass(frozen=True, slots=True)
class Checker:
    """
    How the structure check is run: `command LAYER TABLE MEMORY_BYTES CPU_S`.

    A check of 100,000 files needs about 200 MiB and 1 s; the limits leave
    room for a million on a slow machine.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "gear_plugin.confined.check")
    memory_bytes: int = 2 << 30
    cpu_s: int = 120
    wall_s: float = 240.0


def check_layer(layer: Path, table: Path, checker: Checker | None = None) -> dict[str, Any]:
    """
    Check the index in the unpacked *layer* and write its object table to
    *table*; what `confined.check` says of it.

    Raises IndexDamaged, TimedOut, StorageFull.
    """
    checker = checker or Checker()
    limits = (str(checker.memory_bytes), str(checker.cpu_s))
    try:
        done = subprocess.run(
            [*checker.command, str(layer), str(table), *limits],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=checker.wall_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"checking the index took more than {checker.wall_s:g} s") from error
    answer = helper.answer(done.stdout)
    if answer is None and done.returncode == -signal.SIGXCPU:
        raise IndexDamaged(f"the index keeps its checker busy for more than {checker.cpu_s} s")
    if answer is None:
        raise IndexDamaged(
            f"the process that checks the index {helper.ending(done.returncode)};"
            " an index that cannot be checked is not mounted"
        )
    wire.raise_failure(answer)
    return answer

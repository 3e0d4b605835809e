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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gear_plugin import wire
from gear_plugin.errors import IndexDamaged, TimedOut
from gear_plugin.layers import helper

_COMMAND = (sys.executable, "-m", "gear_plugin.confined.check")


class Checker:
    """
    Runs *command* on `LAYER TABLE MEMORY_BYTES CPU_S`.

    A check of 100,000 files needs about 200 MiB and 1 s; the limits leave
    room for a million on a slow machine.  *ahead*: see helper.Helper.
    """

    def __init__(
        self,
        *,
        command: Sequence[str] = _COMMAND,
        memory_bytes: int = 2 << 30,
        cpu_s: int = 120,
        wall_s: float = 240.0,
        ahead: bool = False,
    ) -> None:
        self._helper = helper.Helper(command, ahead=ahead)
        self._memory_bytes = memory_bytes
        self._cpu_s = cpu_s
        self._wall_s = wall_s

    def check(self, layer: Path, table: Path) -> dict[str, Any]:
        """
        Check the index in the unpacked *layer* and write its object table to
        *table*; what `confined.check` says of it.

        Raises IndexDamaged, TimedOut, StorageFull.
        """
        limits = (str(self._memory_bytes), str(self._cpu_s))
        process = self._helper.start(str(layer), str(table), *limits)
        try:
            said, _ = process.communicate(timeout=self._wall_s)
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"checking the index took more than {self._wall_s:g} s") from error
        finally:
            process.kill()
            status = self._helper.finish(process)
        answer = helper.answer(said)
        if answer is None and status == -signal.SIGXCPU:
            raise IndexDamaged(f"the index keeps its checker busy for more than {self._cpu_s} s")
        if answer is None:
            raise IndexDamaged(
                f"the process that checks the index {helper.ending(status)};"
                " an index that cannot be checked is not mounted"
            )
        wire.raise_failure(answer)
        return answer


def check_layer(layer: Path, table: Path) -> dict[str, Any]:
    """`Checker.check`, once."""
    return Checker().check(layer, table)

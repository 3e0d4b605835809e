"""
Where an archive goes: a file, which appears whole or not at all, or a stream.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gear_plugin.durable import is_full, storage_full, write_once
from gear_plugin.errors import BadInput, StorageFull

Output = Path | BinaryIO
"""A file, or a stream such as stdout."""


def output_name(output: Output) -> str:
    """For people: the path, or `-`."""
    return str(output) if isinstance(output, Path) else "-"


def check_output(output: Output) -> None:
    """What can be told before a long job; raises BadInput."""
    if not isinstance(output, Path):
        return
    problem = ""
    try:
        if output.is_dir():
            problem = "it is a folder"
        elif not output.parent.is_dir():
            problem = "its folder does not exist"
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise BadInput(f"cannot write {output}: {problem}")


@contextmanager
def opened_output(output: Output) -> Iterator[BinaryIO]:
    """
    *output* to write during the block; a file of that name is replaced when it ends well.

    Raises BadInput (cannot be written, nobody reads it), StorageFull.
    """
    try:
        if not isinstance(output, Path):
            yield output
            output.flush()
        elif output.exists() and not stat.S_ISREG(output.stat().st_mode):
            with storage_full(output), output.open("wb") as out:
                yield out
        else:
            with write_once(output.resolve(), mode=0o644) as out:
                yield out
    except StorageFull:
        raise
    except OSError as error:
        name = output if isinstance(output, Path) else "the archive to stdout"
        if is_full(error):
            raise StorageFull(f"no room to write {name} ({error.strerror})") from error
        raise BadInput(f"cannot write {name}: {error.strerror}") from error

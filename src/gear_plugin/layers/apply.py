"""
Feeding a tar stream to the unpacking process (`confined.untar`).

This side only moves bytes: it reads the stream to its end whatever happens to
the child, because dockerd hashes exactly what is read and takes an answer
before the end for success.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from gear_plugin import wire
from gear_plugin.errors import ArchiveMalformed, Unavailable
from gear_plugin.layers import helper

ReadChunk = Callable[[int], bytes]
"""Up to n bytes of the stream; empty at its end.  Raises if it was cut off."""

_CHUNK_BYTES = 1 << 20
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031


class Unpacker:
    """Runs `confined.untar`; *ahead*: see helper.Helper.  Thread-safe."""

    def __init__(self, *, ahead: bool = False) -> None:
        command = (sys.executable, "-m", "gear_plugin.confined.untar")
        self._helper = helper.Helper(command, ahead=ahead)

    def unpack(self, directory: Path, read: ReadChunk, *, lowest: bool) -> int:
        """
        Unpack the tar that *read* gives into the empty *directory*.

        Returns the bytes of its regular files.  Raises ArchiveMalformed,
        StorageFull, Unsupported, Unavailable (the process was killed), and
        whatever *read* raises.
        """
        child = self._helper.start(str(directory), *(["--lowest"] if lowest else []))
        assert child.stdin is not None and child.stdout is not None
        answer = _Answer(child.stdout.fileno())
        try:
            _set_pipe_size(child.stdin.fileno())
            _feed(child.stdin.fileno(), read)
            child.stdin.close()
            said = answer.text()
        except BaseException:
            child.kill()
            answer.text()
            raise
        finally:
            status = self._helper.finish(child)
        result = helper.answer(said)
        if result is None and status < 0:
            ending = helper.ending(status)
            raise Unavailable(f"the process that unpacks the layer {ending}; try again")
        if result is None:
            raise ArchiveMalformed(
                f"unpacking the layer {helper.ending(status)}; the log has its last words"
            )
        if "error" in result:
            wire.raise_failure({"ok": False, **result})
        return int(result["size"])

    def close(self) -> None:
        """End the process that waits for work."""
        self._helper.close()


def drain(read: ReadChunk) -> None:
    """Read the stream to its end."""
    while read(_CHUNK_BYTES):
        pass


class _Answer:
    """The child's output, read by a thread so that neither side can block the other."""

    def __init__(self, handle: int) -> None:
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._collect, args=(handle,), daemon=True)
        self._thread.start()

    def _collect(self, handle: int) -> None:
        while part := os.read(handle, 65536):
            self._parts.append(part)

    def text(self) -> bytes:
        """Everything the child printed, once it has closed its output."""
        self._thread.join()
        return b"".join(self._parts)


def _feed(pipe: int, read: ReadChunk) -> None:
    """Copy the stream into *pipe*; when the child has stopped reading, just drain it."""
    child_reads = True
    while chunk := read(_CHUNK_BYTES):
        view = memoryview(chunk)
        while view and child_reads:
            try:
                view = view[os.write(pipe, view) :]
            except BrokenPipeError:
                child_reads = False


def _set_pipe_size(pipe: int) -> None:
    fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)

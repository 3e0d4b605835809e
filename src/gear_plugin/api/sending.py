"""
Objects of the public cache on their way to other nodes.

    PublicObjects   opens what is in `public/`, which is only ever read here
    piece_bytes     how much of them to send at once
    Getting         has the client process get what is missing, in bounded number

What is in `public/` is whole and verified (content/cache.py), so it is sent as
it is; who asked verifies it all the same.  Safe from any thread.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.content.rate import RateLimit
from gear_plugin.digest import Digest
from gear_plugin.errors import StorageUnavailable, TimedOut

log = logging.getLogger(__name__)

PIECE_BYTES = 256 * 1024
"""What is sent with one call: below it the calls cost more than the bytes."""
_LIMITED_PIECES_S = 10
_LEAST_PIECE_BYTES = 4096


@dataclass(slots=True)
class OpenObject:
    """An open file and its size in bytes; as a file to read, whose `close` may do more."""

    fd: int
    size_bytes: int
    when_closed: Callable[[], None] = lambda: None

    def fileno(self) -> int:
        """For sendfile(2)."""
        return self.fd

    def read(self, size: int) -> bytes:
        """The next *size* bytes, or what is left of it."""
        return os.read(self.fd, size)

    def close(self) -> None:
        """Close the file; only the first call counts."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            self.when_closed()

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        """
        All of it.

        Raises ConnectionResetError if the file turns out to be shorter: there is
        no other way to say so when its size was sent.
        """
        left = self.size_bytes
        while left:
            piece = os.read(self.fd, min(left, piece_bytes))
            if not piece:
                log.error("an object of the cache is shorter than it was; not sent on")
                raise ConnectionResetError(errno.ECONNRESET, "the object is cut short")
            left -= len(piece)
            yield piece


class PublicObjects:
    """The objects below *root*`/public`; never those of `private/`."""

    def __init__(self, root: Path) -> None:
        self._folder = f"{root}/public/"

    def has(self, digest: Digest) -> bool:
        """Whether there is something under that name."""
        return os.path.lexists(self._folder + digest.shard_path)

    def open(self, digest: Digest) -> OpenObject | None:
        """
        The object, if it is here.

        Links and anything else that is no file were not made by the cache, and
        count as missing.  Raises StorageUnavailable.
        """
        path = self._folder + digest.shard_path
        # A fifo would be waited for without O_NONBLOCK.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                log.error("%s is not a file; not served", path)
                return None
            raise StorageUnavailable(f"cannot read {path} ({error.strerror})") from error
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            log.error("%s is not a file; not served", path)
            return None
        return OpenObject(fd, found.st_size)


def piece_bytes(limit: RateLimit) -> int:
    """How much to send at once below *limit*, so that it goes evenly."""
    if not limit.bytes_s:
        return PIECE_BYTES
    return max(_LEAST_PIECE_BYTES, min(PIECE_BYTES, limit.bytes_s // _LIMITED_PIECES_S))


class Getting:
    """
    Missing objects, which *obtain* (the client process) brings into `public/`.

    *workers* at once, for all who ask.  Nobody waits longer than *timeout_s*.
    """

    def __init__(
        self, obtain: Callable[[Digest, int | None], None], *, workers: int, timeout_s: float
    ) -> None:
        self._obtain = obtain
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(workers, "getting")

    def start(self, digest: Digest, size_bytes: int | None = None) -> Future[None]:
        """Begin, or queue up."""
        return self._pool.submit(self._obtain, digest, size_bytes)

    def wait(self, future: Future[None]) -> None:
        """Until it is there; raises what *obtain* does, and TimedOut."""
        try:
            future.result(self._timeout_s)
        except FutureTimeoutError as error:
            future.cancel()
            raise TimedOut(
                f"the object did not come in {self._timeout_s:g} s; try again"
            ) from error

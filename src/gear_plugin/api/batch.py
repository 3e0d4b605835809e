"""
Many objects in one stream: the answer of `POST /batch`.

A record an object, in the order asked: its 32-byte digest, its size as 8 bytes,
big-endian, and its content; the size 2**64-1 stands for an object that cannot be
had, and no content follows.

Small objects are put together into pieces, as each send costs as much as 4 KiB of
them.  What is missing is asked for ahead of its turn, and what is ready is sent
before a wait, so that the asker sees that we live.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from gear_plugin.api.sending import Getting, OpenObject, PublicObjects, piece_bytes
from gear_plugin.content.rate import RateLimit
from gear_plugin.digest import Digest
from gear_plugin.errors import BadRequest, ContentNotFound, GearError

log = logging.getLogger(__name__)

DIGEST_BYTES = 32
MAX_DIGESTS = 4096
MAX_BODY_BYTES = DIGEST_BYTES * MAX_DIGESTS
_ABSENT = b"\xff" * 8
_AHEAD = 64
"""Objects looked for before their turn."""


def parse_digests(body: bytes) -> list[Digest]:
    """What a request's body asks for; raises BadRequest."""
    if not body or len(body) % DIGEST_BYTES or len(body) > MAX_BODY_BYTES:
        raise BadRequest(
            f"/batch: the body is 1 to {MAX_DIGESTS} digests of {DIGEST_BYTES} bytes each, "
            f"not {len(body)} bytes"
        )
    return [Digest(body[at : at + DIGEST_BYTES]) for at in range(0, len(body), DIGEST_BYTES)]


class Batch:
    """
    The records of *digests*; `sent` and `absent` count objects, as far as it got.

    *getting*: for what is missing; None: it cannot be had.
    """

    def __init__(
        self,
        digests: Sequence[Digest],
        public: PublicObjects,
        getting: Getting | None,
        limit: RateLimit,
    ) -> None:
        self._digests = digests
        self._public = public
        self._getting = getting
        self._limit = limit
        self.sent = self.absent = self.sent_bytes = 0

    def pieces(self) -> Iterator[bytes]:
        """The stream."""
        for piece in self._pieces(piece_bytes(self._limit)):
            self._limit.take(len(piece))
            self.sent_bytes += len(piece)
            yield piece

    def _pieces(self, size_bytes: int) -> Iterator[bytes]:
        parts: list[bytes] = []
        length = 0
        for digest, future in self._in_turn():
            if future is not None and parts and not future.done():
                yield b"".join(parts)
                parts, length = [], 0
            found = self._open(digest, future)
            if found is None:
                parts.append(digest.raw + _ABSENT)
                length += DIGEST_BYTES + len(_ABSENT)
                self.absent += 1
                continue
            try:
                parts.append(digest.raw + found.size_bytes.to_bytes(8, "big"))
                for content in found.pieces(size_bytes):
                    parts.append(content)
                    length += len(content)
                    if length >= size_bytes:
                        yield b"".join(parts)
                        parts, length = [], 0
            finally:
                found.close()
            self.sent += 1
            length += DIGEST_BYTES + 8
        if parts:
            yield b"".join(parts)

    def _in_turn(self) -> Iterator[tuple[Digest, Future[None] | None]]:
        """Each object, and what it waits for."""
        ahead: deque[tuple[Digest, Future[None] | None]] = deque()
        try:
            for digest in self._digests:
                future = None
                if self._getting is not None and not self._public.has(digest):
                    future = self._getting.start(digest)
                ahead.append((digest, future))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            for _, future in ahead:
                if future is not None:
                    future.cancel()

    def _open(self, digest: Digest, future: Future[None] | None) -> OpenObject | None:
        """The object when its turn has come; None: it cannot be had."""
        try:
            if future is not None and self._getting is not None:
                self._getting.wait(future)
            elif (found := self._public.open(digest)) is not None:
                return found
            elif self._getting is not None:
                # Evicted since it was seen.
                self._getting.wait(self._getting.start(digest))
            return self._public.open(digest)
        except ContentNotFound as error:
            log.debug("not sent: %s", error)
        except GearError as error:
            # A source that does not answer would be waited for once an object.
            log.warning("getting no more objects for this batch: %s", error)
            self._getting = None
        return None

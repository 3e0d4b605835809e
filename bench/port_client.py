"""
One process that takes objects from a node's port as fast as it gives them.

`bench.port` starts some of these.  Each says `ready` on stdout, begins when a line
comes on stdin, and ends with one line of JSON: what it got, and how long each
answer took.  Contents are not hashed while time counts: this measures the sender.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection

from gear_plugin.digest import Digest

TLS = "https://"
LARGE, BATCH, SINGLE = "large", "batch", "single"
BATCH_OBJECTS = 1000
_ABSENT = 2**64 - 1
_HEAD_BYTES = 40
"""Of a record: the digest and the size."""


class BadAnswer(Exception):
    """The port did not do what docs/http-api.md says."""


@dataclass
class Taken:
    """What one process got."""

    objects: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    answers_s: list[float] = field(default_factory=list)
    """How long each request took."""


def connection(address: str, timeout_s: float) -> HTTPConnection:
    """To `HOST:PORT`, or by TLS to `https://HOST:PORT`, whose certificate is not looked at."""
    host, _, port = address.removeprefix(TLS).rpartition(":")
    if not address.startswith(TLS):
        return HTTPConnection(host, int(port), timeout=timeout_s)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return HTTPSConnection(host, int(port), timeout=timeout_s, context=context)


class Port:
    """One connection to a node's port, kept open."""

    def __init__(self, address: str, token: str) -> None:
        self._connection = connection(address, 60)
        self._headers = {"Authorization": f"Bearer {token}", "Gear-Node": "f" * 32}
        self._buffer = bytearray(1 << 20)

    def download(self, digest: Digest) -> int:
        """Take one object; returns its size."""
        with self._ask(f"/download/{digest}", b"") as answer:
            taken = 0
            while count := answer.readinto(self._buffer):
                taken += count
        return taken

    def content(self, digest: Digest) -> bytes:
        """The object itself."""
        with self._ask(f"/download/{digest}", b"") as answer:
            return bytes(answer.read())

    def batch(self, digests: Sequence[Digest]) -> list[bytes]:
        """Take many objects; returns their contents."""
        with self._ask("/batch", b"".join(digest.raw for digest in digests)) as answer:
            return contents(answer.read(), digests)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, path: str, body: bytes) -> HTTPResponse:
        self._connection.request("POST", path, body, self._headers)
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise BadAnswer(f"{path}: {answer.status}: {answer.read(300)!r}")
        return answer


def contents(stream: bytes, digests: Sequence[Digest]) -> list[bytes]:
    """The contents in the answer of `/batch`; raises BadAnswer if one is not what was asked."""
    view, place, found = memoryview(stream), 0, []
    for digest in digests:
        head = view[place : place + _HEAD_BYTES]
        size = int.from_bytes(head[32:], "big")
        if head[:32] != digest.raw or size == _ABSENT:
            raise BadAnswer(f"/batch: no {digest} at byte {place} of {len(stream)}")
        place += _HEAD_BYTES + size
        found.append(view[place - size : place])
    if place != len(stream):
        raise BadAnswer(f"/batch: {len(stream)} bytes and not {place}")
    return [bytes(content) for content in found]


def check(port: Port, digests: Sequence[Digest]) -> None:
    """Both ways of asking give these objects; raises BadAnswer."""
    for digest, content in zip(digests, port.batch(digests), strict=True):
        if hashlib.sha256(content).digest() != digest.raw or port.content(digest) != content:
            raise BadAnswer(f"{digest} came with the wrong content")


def take(port: Port, kind: str, digests: Sequence[Digest], seconds: float) -> Taken:
    """Ask again and again for *seconds*, each object in turn."""
    taken = Taken()
    once = _batch(port, digests) if kind == BATCH else _download(port, digests)
    begun = now = time.perf_counter()
    while now - begun < seconds:
        objects, size_bytes = once()
        then, now = now, time.perf_counter()
        taken.objects += objects
        taken.size_bytes += size_bytes
        taken.answers_s.append(now - then)
    taken.seconds = now - begun
    return taken


def _batch(port: Port, digests: Sequence[Digest]) -> Callable[[], tuple[int, int]]:
    some = digests[:BATCH_OBJECTS]
    return lambda: (len(some), sum(map(len, port.batch(some))))


def _download(port: Port, digests: Sequence[Digest]) -> Callable[[], tuple[int, int]]:
    turn = itertools.cycle(digests)
    return lambda: (1, port.download(next(turn)))


def main() -> int:
    """`ADDRESS TOKEN KIND SECONDS`, then digests in hex on the first line of stdin."""
    address, token, kind, seconds = sys.argv[1:]
    digests = [Digest.from_hex(text) for text in sys.stdin.readline().split()]
    port = Port(address, token)
    port.download(digests[0])
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asdict(take(port, kind, digests, float(seconds)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""
Objects from the cluster: from the nodes that keep them, and from the manager.

Every object has two *homes* (`cluster.homes`).  A node that lacks it asks the
first; one that has sent no byte for `hedge_s` gets company by the second, and
who sends first is read.  A node that is a home itself asks no other, so no
request is ever passed on more than once.

A home that refuses, breaks off, sends wrong bytes or too few is set aside
(`Aside`), and the next in line is a home instead.  One that says that it cannot
get the object is not: its store may be down, and what is in its cache is as
good as before.

Safe from any thread; a request is made in a thread of its own, which ends by
the time limits of `calls`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from urllib3.response import BaseHTTPResponse

from gear_plugin.cluster import Member, Members, route
from gear_plugin.content.aside import Aside
from gear_plugin.content.base import Group, ObjectSource, Record
from gear_plugin.content.calls import Body, Calls, failure, release
from gear_plugin.content.fetch import peer_patience_s
from gear_plugin.content.rate import RateLimit
from gear_plugin.digest import Digest
from gear_plugin.errors import (
    ContentCorrupt,
    ContentNotFound,
    Damaged,
    GearError,
    NotFound,
    SourceUnavailable,
    StorageFull,
    StorageUnavailable,
    TimedOut,
)

log = logging.getLogger(__name__)

NODE_HEADER = "Gear-Node"
"""Says which node asks; who is asked in this way asks no other node."""
MISSING = (1 << 64) - 1
"""The size, in a batch, of an object that cannot be had."""

# What a node may answer about one object without being to blame itself.
_NO_FAULT = (NotFound, Damaged, SourceUnavailable, TimedOut, StorageFull, StorageUnavailable)


class ManagerSource:
    """What the manager at *address* (`HOST:PORT`) can get: the last one to ask."""

    def __init__(self, calls: Calls, address: str) -> None:
        self.name = f"manager {address}"
        self._calls = calls
        self._address = address

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        response = self._calls.post(self._address, f"/get/{digest}")
        missing = f"the manager has no object {digest}"
        with _opened(response, self._address, missing, self._calls.stall_s) as pieces:
            yield pieces


class CachedCopies:
    """
    What the live ones of *members* have in their caches, for repairs.

    None of them goes to the store for it.  A node that does not answer is set
    aside, so that thousands of objects do not wait for it one by one.
    """

    def __init__(self, calls: Calls, members: Members) -> None:
        self._calls = calls
        self._members = members
        self._aside = Aside()

    def sources(self, digest: Digest) -> Iterator[ObjectSource]:
        """The nodes, those first that are most likely to have it."""
        for member in self._members.homes(digest, len(self._members.live())):
            if member.node not in self._aside:
                yield _CachedCopy(self._calls, member, self._aside)


class _CachedCopy:
    """What one node has in its cache."""

    def __init__(self, calls: Calls, member: Member, aside: Aside) -> None:
        self.name = f"cache of node {member.address}"
        self._calls = calls
        self._member = member
        self._aside = aside

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        address, begun_s = self._member.address, self._aside.now_s()
        missing = f"{address} has not cached {digest}"
        try:
            response = self._calls.post(address, f"/download/{digest}?cached=1")
        except SourceUnavailable:
            self._aside.fault(self._member.node, begun_s)
            raise
        with _opened(response, address, missing, self._calls.stall_s) as pieces:
            yield pieces


class HomesSource:
    """
    The homes of each object among *members*, asked by *node*.

    *limit* bounds what comes from all of them together.
    """

    name = "other nodes"

    def __init__(
        self,
        calls: Calls,
        members: Callable[[], Members],
        node: str,
        *,
        hedge_s: float,
        limit: RateLimit | None = None,
        aside: Aside | None = None,
    ) -> None:
        self._calls = calls
        self._members = members
        self._node = node
        self._hedge_s = hedge_s
        self._limit = limit or RateLimit(0)
        self._aside = aside or Aside()

    def asks(self, digest: Digest) -> bool:
        """Whether there is a node now that `read` would ask."""
        return bool(self._candidates(digest))

    @contextlib.contextmanager
    def read(self, digest: Digest, size_bytes: int | None = None) -> Iterator[Iterator[bytes]]:
        """As `Peers.read`; `ContentNotFound` at once when there is nobody to ask."""
        winner = self._winner(digest, size_bytes)
        try:
            with self._judged(winner.member, winner.begun_s):
                yield self._pieces(winner)
        finally:
            winner.close()

    def groups(self, digests: Iterable[Digest]) -> list[Group]:
        """Who is asked for which of *digests*: the first home of each that is not set aside."""
        by_member: dict[Member, list[Digest]] = {}
        for digest in dict.fromkeys(digests):
            candidates = self._candidates(digest)
            if candidates:
                by_member.setdefault(candidates[0], []).append(digest)
        return [
            Group(member, tuple(found)) for member, found in by_member.items() if len(found) > 1
        ]

    @contextlib.contextmanager
    def read_many(self, group: Group) -> Iterator[Iterator[Record]]:
        """As `Peers.read_many`: one `POST /batch`."""
        member, begun_s = group.member, self._aside.now_s()
        try:
            response = self._calls.post(
                member.address,
                "/batch",
                body=b"".join(digest.raw for digest in group.digests),
                headers={NODE_HEADER: self._node},
            )
        except SourceUnavailable as error:
            self._fault(member, begun_s, str(error))
            raise
        refusal = failure(response, member.address)
        if refusal is not None:
            self._note_refusal(member, begun_s, refusal)
            raise SourceUnavailable(str(refusal))
        body = Body(response, member.address, self._calls.stall_s, self._limit)
        try:
            with self._judged(member, begun_s):
                yield _records(group, body)
        finally:
            body.close()

    def _candidates(self, digest: Digest) -> list[Member]:
        """Whom to ask for the object now, in this order."""
        return route(digest, self._members(), self._node, self._aside)

    def _winner(self, digest: Digest, size_bytes: int | None) -> _Attempt:
        """
        Who sends the object; raises as `ObjectSource.read` on entry.

        When all its homes fail, those that stand in for them are asked: else
        every node would go to the store for what died homes kept.
        """
        candidates = self._candidates(digest)
        if not candidates:
            raise ContentNotFound(f"no other node is asked for {digest}")
        try:
            return self._race(digest, size_bytes, candidates)
        except SourceUnavailable:
            others = [member for member in self._candidates(digest) if member not in candidates]
            if not others:
                raise
            return self._race(digest, size_bytes, others)

    def _race(self, digest: Digest, size_bytes: int | None, candidates: list[Member]) -> _Attempt:
        """The first of *candidates* that sends bytes; raises as `ObjectSource.read` on entry."""
        patience_s = peer_patience_s(self._calls.stall_s, size_bytes or 0)
        path = f"/download/{digest}" + (f"?size={size_bytes}" if size_bytes is not None else "")
        answers: queue.SimpleQueue[_Attempt] = queue.SimpleQueue()
        deadline_s = time.monotonic() + patience_s
        waiting, asked, failures = list(candidates), list[_Attempt](), list[GearError]()
        must_ask = True
        while True:
            if must_ask:
                attempt = _Attempt(waiting.pop(0), self._aside.now_s(), answers)
                attempt.start(self._calls, path, {NODE_HEADER: self._node}, patience_s)
                asked.append(attempt)
            left_s = max(0.0, deadline_s - time.monotonic())
            try:
                attempt = answers.get(timeout=min(left_s, self._hedge_s) if waiting else left_s)
            except queue.Empty:
                must_ask = bool(waiting) and time.monotonic() < deadline_s
                if must_ask:
                    continue
                self._give_up(asked, f"sent nothing for {patience_s:g} s")
                raise SourceUnavailable(
                    f"{_addresses(asked)} sent nothing of {digest} for {patience_s:g} s"
                ) from None
            place = asked.index(attempt)
            del asked[place]
            if attempt.error is None:
                self._give_up(asked[:place], f"was slower than {attempt.member.address}")
                for later in asked[place:]:
                    later.give_up()
                return attempt
            if attempt.is_refusal:
                self._note_refusal(attempt.member, attempt.begun_s, attempt.error)
            else:
                self._fault(attempt.member, attempt.begun_s, str(attempt.error))
            failures.append(attempt.error)
            must_ask = bool(waiting)
            if not waiting and not asked:
                raise _verdict(digest, failures)

    def _pieces(self, winner: _Attempt) -> Iterator[bytes]:
        assert winner.response is not None
        self._limit.take(len(winner.first))
        if winner.first:
            yield winner.first
            body = Body(winner.response, winner.member.address, self._calls.stall_s, self._limit)
            yield from body.pieces()

    @contextlib.contextmanager
    def _judged(self, member: Member, begun_s: float) -> Iterator[None]:
        """Note what becomes of a request: by its error, or by its end without one."""
        try:
            yield
        except ContentCorrupt:
            self._fault(member, begun_s, "sent wrong bytes")
            raise
        except SourceUnavailable as error:
            self._fault(member, begun_s, str(error))
            raise
        self._aside.success(member.node, begun_s)

    def _note_refusal(self, member: Member, begun_s: float, error: GearError) -> None:
        if not isinstance(error, _NO_FAULT):
            self._fault(member, begun_s, str(error))

    def _give_up(self, attempts: list[_Attempt], why: str) -> None:
        for attempt in attempts:
            attempt.give_up()
            self._fault(attempt.member, attempt.begun_s, why)

    def _fault(self, member: Member, begun_s: float, why: str) -> None:
        pause_s = self._aside.fault(member.node, begun_s)
        if pause_s is not None:
            log.warning(
                "node %s at %s is set aside for %g s: %s",
                member.node[:12],
                member.address,
                pause_s,
                why,
            )


class _Attempt:
    """One request for one object, in a thread of its own until the first bytes are here."""

    def __init__(
        self, member: Member, begun_s: float, answers: queue.SimpleQueue[_Attempt]
    ) -> None:
        self.member = member
        self.begun_s = begun_s
        self.response: BaseHTTPResponse | None = None
        self.first = b""
        self.error: GearError | None = None
        self.is_refusal = False
        """The error is what the node answered."""
        self._answers = answers
        self._lock = threading.Lock()  # guards the two below
        self._is_given_up = False
        self._is_here = False

    def start(self, calls: Calls, path: str, headers: dict[str, str], answer_s: float) -> None:
        try:
            threading.Thread(
                target=self._run, args=(calls, path, headers, answer_s), daemon=True
            ).start()
        except RuntimeError as error:
            self.error = SourceUnavailable(f"no thread to ask {self.member.address} with: {error}")
            self.is_refusal = True
            self._answers.put(self)

    def give_up(self) -> None:
        """Nobody wants its bytes any more."""
        with self._lock:
            self._is_given_up = True
            is_here = self._is_here
        if is_here:
            self.close()

    def close(self) -> None:
        """Close the connection, unless the answer was read to its end."""
        if self.response is not None:
            release(self.response)

    def _run(self, calls: Calls, path: str, headers: dict[str, str], answer_s: float) -> None:
        address = self.member.address
        try:
            self.response = calls.post(address, path, headers=headers, answer_s=answer_s)
            self.error = failure(self.response, address)
            self.is_refusal = self.error is not None
            if self.error is None:
                body = Body(self.response, address, answer_s, RateLimit(0))
                self.first = body.soon()
        except GearError as error:
            self.error = error
        except Exception:
            log.exception("internal error: %s from %s", path, address)
            self.error = SourceUnavailable("internal error; see the client's log")
        with self._lock:
            self._is_here = True
            is_given_up = self._is_given_up
        if is_given_up or self.error is not None:
            self.close()
        self._answers.put(self)


@contextlib.contextmanager
def _opened(
    response: BaseHTTPResponse, address: str, missing: str, stall_s: float
) -> Iterator[Iterator[bytes]]:
    """The object in *response*; raises as `ObjectSource.read`, ContentNotFound with *missing*."""
    error = failure(response, address)
    if error is not None:
        raise _as_source(error, missing)
    body = Body(response, address, stall_s, RateLimit(0))
    try:
        yield body.pieces()
    finally:
        body.close()


def _records(group: Group, body: Body) -> Iterator[Record]:
    for digest in group.digests:
        head = body.exactly(40)
        if head[:32] != digest.raw:
            raise SourceUnavailable(f"{group.member.address} sends a batch in another order")
        size_bytes = int.from_bytes(head[32:], "big")
        if size_bytes == MISSING:
            yield digest, None
            continue
        pieces = body.pieces(size_bytes)
        yield digest, pieces
        for _ in pieces:
            pass
    if body.some(1):
        raise SourceUnavailable(f"{group.member.address} sends more than it was asked for")


def _as_source(error: GearError, missing: str) -> GearError:
    """
    What a machine answered, as an error of a source.

    Its other errors would be taken for this node's own: its full disk, say.
    """
    if isinstance(error, NotFound):
        return ContentNotFound(f"{missing} ({error})")
    return SourceUnavailable(str(error))


def _verdict(digest: Digest, failures: list[GearError]) -> GearError:
    reasons = "; ".join(str(failure) for failure in failures)
    if all(isinstance(failure, NotFound) for failure in failures):
        return ContentNotFound(f"no home has {digest} ({reasons})")
    return SourceUnavailable(reasons)


def _addresses(attempts: list[_Attempt]) -> str:
    return " and ".join(attempt.member.address for attempt in attempts)

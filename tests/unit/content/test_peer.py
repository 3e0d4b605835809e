"""Objects from other nodes: homes in their order, company for a slow one, faults set aside."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.cluster import Member, Members, Token
from gear_plugin.cluster import homes as homes_of
from gear_plugin.content.aside import Aside
from gear_plugin.content.calls import PIECE_BYTES, Calls
from gear_plugin.content.peer import HomesSource, ManagerSource
from gear_plugin.content.rate import RateLimit
from gear_plugin.digest import Digest
from gear_plugin.errors import (
    ContentCorrupt,
    ContentNotFound,
    GearError,
    SourceUnavailable,
)
from gear_plugin.jobs.tls import Tls
from tests import certificates
from tests.unit.content.nodes import ME, TOKEN, FakeNode, Request, in_order, members_of, running
from tests.waiting import eventually

CONTENT = b"what an object holds " * 100
DIGEST = Digest.of(CONTENT)


class Clock:
    """One that the test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nodes() -> Iterator[list[FakeNode]]:
    """Three that have the object, its homes first."""
    with running(3) as found:
        for node in found:
            node.put(CONTENT)
        yield in_order(found, DIGEST)


def calls(*, stall_s: float = 5.0, token: Token = TOKEN) -> Calls:
    return Calls(token, connect_s=2, stall_s=stall_s)


def source(
    nodes: list[FakeNode],
    clock: Clock | None = None,
    *,
    hedge_s: float = 5.0,
    stall_s: float = 5.0,
    token: Token = TOKEN,
    others: tuple[Member, ...] = (),
) -> HomesSource:
    members = members_of(nodes, *others)
    return HomesSource(
        calls(stall_s=stall_s, token=token),
        lambda: members,
        ME,
        hedge_s=hedge_s,
        aside=Aside(clock or Clock()),
    )


def read(homes: HomesSource | ManagerSource, digest: Digest = DIGEST) -> bytes:
    with homes.read(digest) as chunks:
        return b"".join(chunks)


def counts(nodes: list[FakeNode]) -> list[int]:
    return [len(node.requests) for node in nodes]


def test_first_home_is_asked(nodes: list[FakeNode]) -> None:
    """And nobody else; it learns who asks and what size is expected."""
    homes = source(nodes)
    assert homes.asks(DIGEST)
    with homes.read(DIGEST, len(CONTENT)) as chunks:
        assert b"".join(chunks) == CONTENT
    assert counts(nodes) == [1, 0, 0]
    assert nodes[0].requests == [f"/download/{DIGEST}?size={len(CONTENT)}"]
    assert nodes[0].headers[0]["Gear-Node"] == ME


def test_connections_are_kept(nodes: list[FakeNode]) -> None:
    """Whether an object was there or not, and after a batch."""
    homes = source(nodes[:1])
    nodes[0].put(b"")
    for _ in range(3):
        assert read(homes) == CONTENT
        assert read(homes, Digest.of(b"")) == b""
        with pytest.raises(ContentNotFound):
            read(homes, Digest.of(b"absent"))
        (group,) = homes.groups([DIGEST, Digest.of(b"")])
        with homes.read_many(group) as records:
            assert [b"".join(chunks or ()) for _, chunks in records] == [CONTENT, b""]
    assert nodes[0].connections == 1


def test_connection_that_the_node_closed_meanwhile_is_no_fault(nodes: list[FakeNode]) -> None:
    """It is opened again."""

    def once(request: Request, _digest: Digest) -> None:
        request.send(CONTENT)
        request.break_off()

    nodes[0].answer = once
    homes = source(nodes)
    assert [read(homes) for _ in range(5)] == [CONTENT] * 5
    assert counts(nodes) == [5, 0, 0]


def test_home_asks_no_other_node(nodes: list[FakeNode]) -> None:
    """Its store is the next."""
    mine = source(nodes[:1], others=(Member(ME, "127.0.0.1:9"),))
    assert not mine.asks(DIGEST)
    with pytest.raises(ContentNotFound):
        read(mine)
    assert mine.groups([DIGEST, Digest.of(b"x")]) == []
    assert counts(nodes) == [0, 0, 0]


def test_node_on_its_own_asks_nobody() -> None:
    """Before it has joined, say."""
    alone = HomesSource(calls(), lambda: Members(0, ()), ME, hedge_s=1)
    assert not alone.asks(DIGEST)
    with pytest.raises(ContentNotFound):
        read(alone)


def test_dead_nodes_are_not_homes(nodes: list[FakeNode]) -> None:
    """By the list; a new list counts at once."""
    lists = [members_of(nodes)]
    homes = HomesSource(calls(), lambda: lists[-1], ME, hedge_s=5)
    read(homes)
    first = nodes[0].member
    lists.append(members_of(nodes[1:], Member(first.node, first.address, is_live=False)))
    read(homes)
    assert counts(nodes) == [1, 1, 0]


def test_second_home_is_asked_when_the_first_lacks_it(
    nodes: list[FakeNode], caplog: pytest.LogCaptureFixture
) -> None:
    """Which is no fault; when both lack it, it is not found."""
    nodes[0].contents.clear()
    homes = source(nodes)
    assert read(homes) == CONTENT
    nodes[1].contents.clear()
    with pytest.raises(ContentNotFound, match=DIGEST.hex):
        read(homes)
    assert counts(nodes) == [2, 2, 0]
    assert caplog.records == []


@pytest.mark.parametrize("error", ["SourceUnavailable", "TimedOut", "StorageFull"])
def test_home_whose_store_is_down_is_not_to_blame(
    nodes: list[FakeNode], error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What it has is as good as before; its troubles are not taken for this node's own."""
    for node in nodes:
        node.answer = lambda request, _: request.refuse(503, error, "store:\n down \x1b[31m")
    homes = source(nodes)
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:\d+: store: down \[31m") as caught:
        read(homes)
    assert type(caught.value) is SourceUnavailable
    assert homes.asks(DIGEST)
    assert caplog.records == []


def refuse_token(request: Request, _digest: Digest) -> None:
    request.refuse(401, "AccessDenied", "no")


def answer_nonsense(request: Request, _digest: Digest) -> None:
    request.begin(2_000_000, 500)
    request.wfile.write(b"x" * 2_000_000)


def redirect(request: Request, _digest: Digest) -> None:
    request.send_response(302)
    request.send_header("Location", "http://127.0.0.1:1/")
    request.send_header("Content-Length", "0")
    request.end_headers()


def hang_up(request: Request, _digest: Digest) -> None:
    request.break_off()


@pytest.mark.parametrize("answer", [refuse_token, answer_nonsense, redirect, hang_up])
def test_home_that_fails_is_set_aside(
    nodes: list[FakeNode],
    clock: Clock,
    answer: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For a second first, then for two; one success, and that is forgotten."""
    good, nodes[0].answer = nodes[0].answer, answer  # type: ignore[assignment]
    homes = source(nodes, clock)

    def asked() -> int:
        before = len(nodes[0].requests)
        assert read(homes) == CONTENT
        return len(nodes[0].requests) - before

    assert asked()
    assert not asked()
    clock.now_s += 1.1
    assert asked()
    clock.now_s += 1.1
    assert not asked()
    nodes[0].answer = good
    clock.now_s += 1
    assert asked()
    nodes[0].answer = answer  # type: ignore[assignment]
    assert asked()
    clock.now_s += 1.1
    assert asked()
    assert "is set aside for 1 s: 127.0.0.1:" in caplog.text
    caplog.clear()


def test_dead_home_is_passed_over(nodes: list[FakeNode], caplog: pytest.LogCaptureFixture) -> None:
    """Nothing listens there any more."""
    nodes[0].server_close()
    homes = source(nodes)
    assert [read(homes), read(homes)] == [CONTENT, CONTENT]
    assert "cannot be asked: " in caplog.text
    assert len(caplog.records) == 1
    caplog.clear()


def test_others_stand_in_for_homes_that_are_dead(
    nodes: list[FakeNode], caplog: pytest.LogCaptureFixture
) -> None:
    """At once; the store is not asked by every node when two die together."""
    for node in nodes[:2]:
        node.server_close()
    homes = source(nodes)
    assert [read(homes), read(homes)] == [CONTENT, CONTENT]
    assert counts(nodes) == [0, 0, 2]
    assert len(caplog.records) == 2
    caplog.clear()


def test_node_that_stands_in_is_a_home(
    nodes: list[FakeNode], caplog: pytest.LogCaptureFixture
) -> None:
    """And goes to its store."""
    found: list[FakeNode] = nodes[:2]
    for node in found:
        node.server_close()
    mine = next(
        Member(f"{at:032x}", "127.0.0.1:9")
        for at in range(10, 1000)
        if Member(f"{at:032x}", "127.0.0.1:9")
        not in homes_of(DIGEST, [*(n.member for n in found), Member(f"{at:032x}", "127.0.0.1:9")])
    )
    members = members_of(found, mine)
    homes = HomesSource(calls(), lambda: members, mine.node, hedge_s=5, aside=Aside(Clock()))
    assert homes.asks(DIGEST)
    with pytest.raises(SourceUnavailable):
        read(homes)
    assert not homes.asks(DIGEST)
    caplog.clear()


def test_slow_home_gets_company(
    nodes: list[FakeNode], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """After hedge_s the second home is asked; it wins, and is the first for a while."""
    nodes[0].answer = nodes[0].hang
    homes = source(nodes, clock, hedge_s=0.1)
    assert read(homes) == CONTENT
    assert counts(nodes) == [1, 1, 0]
    assert read(homes) == CONTENT
    assert counts(nodes) == [1, 2, 0]
    assert "was slower than" in caplog.text
    caplog.clear()


def test_first_home_may_still_win(nodes: list[FakeNode], caplog: pytest.LogCaptureFixture) -> None:
    """Company is no fault, neither of the one nor of the other."""

    def when_the_other_is_asked(request: Request, _digest: Digest) -> None:
        eventually(lambda: nodes[1].requests)
        request.send(CONTENT)

    nodes[0].answer = when_the_other_is_asked
    nodes[1].answer = nodes[1].hang
    assert read(source(nodes, hedge_s=0.05)) == CONTENT
    assert caplog.records == []


def test_homes_that_send_nothing_are_given_up(
    nodes: list[FakeNode], caplog: pytest.LogCaptureFixture
) -> None:
    """In bounded time, and are not asked again at once."""
    for node in nodes:
        node.answer = node.hang
    homes = source(nodes, hedge_s=0.1, stall_s=0.3)
    began = time.monotonic()
    with pytest.raises(SourceUnavailable):
        read(homes)
    assert time.monotonic() - began < 5
    assert not homes.asks(DIGEST)
    caplog.clear()


def test_large_object_is_waited_for_longer(nodes: list[FakeNode]) -> None:
    """A home reads and verifies all of it before it sends the first byte."""
    done = threading.Event()

    def slow(request: Request, _digest: Digest) -> None:
        assert not done.wait(0.5)
        request.send(CONTENT)

    nodes[0].answer = slow
    homes = source(nodes[:1], stall_s=0.2)
    with homes.read(DIGEST, 64 << 20) as chunks:
        assert b"".join(chunks) == CONTENT


def test_home_that_breaks_off_is_set_aside(
    nodes: list[FakeNode], caplog: pytest.LogCaptureFixture
) -> None:
    """In mid-transfer: what came is not an object."""

    def part(request: Request, _digest: Digest) -> None:
        request.send(CONTENT[:1000], len(CONTENT))
        request.break_off()

    nodes[0].answer = part
    homes = source(nodes)
    with pytest.raises(SourceUnavailable, match="broke off"):
        read(homes)
    assert read(homes) == CONTENT
    assert counts(nodes) == [1, 1, 0]
    caplog.clear()


def test_home_that_trickles_is_set_aside(
    nodes: list[FakeNode], caplog: pytest.LogCaptureFixture
) -> None:
    """A byte now and then is not progress."""

    def trickle(request: Request, _digest: Digest) -> None:
        request.begin(PIECE_BYTES)
        while not nodes[0].released.wait(0.05):
            request.wfile.write(b"x")

    nodes[0].answer = trickle
    homes = source(nodes, stall_s=0.3)
    with pytest.raises(SourceUnavailable, match="sends less than"):
        read(homes)
    assert read(homes) == CONTENT
    caplog.clear()


def test_reader_tells_of_wrong_bytes(
    nodes: list[FakeNode], caplog: pytest.LogCaptureFixture
) -> None:
    """By leaving the block with ContentCorrupt; the second home is asked next."""
    homes = source(nodes)
    with pytest.raises(ContentCorrupt), homes.read(DIGEST) as chunks:
        next(chunks)
        raise ContentCorrupt("not what it should be")
    assert "sent wrong bytes" in caplog.text
    read(homes)
    assert counts(nodes) == [1, 1, 0]
    caplog.clear()


def test_errors_of_the_reader_are_no_fault(nodes: list[FakeNode]) -> None:
    """A full disk here, say."""
    homes = source(nodes)
    with pytest.raises(OSError, match="mine"), homes.read(DIGEST):
        raise OSError("mine")
    read(homes)
    assert counts(nodes) == [2, 0, 0]


def test_limit_bounds_what_comes(nodes: list[FakeNode]) -> None:
    """Bytes pass it in pieces, from all nodes together."""
    slept: list[float] = []
    limit = RateLimit(1_000_000, clock=lambda: 10.0, sleep=slept.append)
    large = os.urandom(2_000_000)
    nodes[0].put(large)
    members = members_of(nodes[:1])
    homes = HomesSource(calls(), lambda: members, ME, hedge_s=5, limit=limit)
    assert read(homes, Digest.of(large)) == large
    assert slept[-1] == pytest.approx(1.9)


def batch(nodes: list[FakeNode], number: int) -> list[Digest]:
    """So many objects, which every node has."""
    contents = [b"object %d" % at for at in range(number)]
    for node in nodes:
        node.put(*contents)
    return [Digest.of(content) for content in contents]


def test_batches_go_to_first_homes(nodes: list[FakeNode]) -> None:
    """Every object in one of them, in the order asked for; what is alone comes alone."""
    digests = batch(nodes, 60)
    homes = source(nodes)
    groups = homes.groups(digests * 2)
    assert {group.member for group in groups} == {node.member for node in nodes}
    for group in groups:
        wanted = [d for d in digests if in_order(nodes, d)[0].member == group.member]
        assert list(group.digests) == wanted
        with homes.read_many(group) as records:
            found = [(digest, b"".join(chunks or ())) for digest, chunks in records]
        assert [digest for digest, _ in found] == wanted
        assert all(Digest.of(content) == digest for digest, content in found)
    assert counts(nodes) == [1, 1, 1]
    assert homes.groups(digests[:1]) == []


def test_batch_says_what_cannot_be_had(nodes: list[FakeNode]) -> None:
    """And goes on; what is not read is skipped."""
    digests = batch(nodes[:1], 5)
    del nodes[0].contents[digests[2]]
    homes = source(nodes[:1])
    (group,) = homes.groups(digests)
    with homes.read_many(group) as records:
        found = {digest: chunks is not None for digest, chunks in records}
    assert found == {digest: digest != digests[2] for digest in digests}
    assert nodes[0].connections == 1


def other_order(request: Request, digests: list[Digest]) -> None:
    request.send(b"".join(d.raw + bytes(8) for d in reversed(digests)))


def too_short(request: Request, digests: list[Digest]) -> None:
    request.send(digests[0].raw + bytes(8), 4000)
    request.break_off()


def too_long(request: Request, digests: list[Digest]) -> None:
    request.send(b"".join(d.raw + bytes(8) for d in digests) + b"x")


def no_batch(request: Request, _digests: list[Digest]) -> None:
    request.refuse(500, "GearError", "internal error")


@pytest.mark.parametrize("answer", [other_order, too_short, too_long, no_batch])
def test_batch_that_fails_sets_the_node_aside(
    nodes: list[FakeNode], answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    """And is an error."""
    nodes[0].batch = answer  # type: ignore[assignment]
    homes = source(nodes[:1])
    (group,) = homes.groups(batch(nodes[:1], 3))
    with pytest.raises(SourceUnavailable), homes.read_many(group) as records:
        for _ in records:
            pass
    assert not homes.asks(DIGEST)
    caplog.clear()


def test_manager_is_a_source(nodes: list[FakeNode]) -> None:
    """By content ids."""
    manager = ManagerSource(calls(), nodes[0].address)
    assert read(manager) == CONTENT
    assert nodes[0].requests == [f"/get/{DIGEST}"]
    with pytest.raises(ContentNotFound, match="the manager has no object"):
        read(manager, Digest.of(b"absent"))


def test_managers_errors_are_not_this_nodes(nodes: list[FakeNode]) -> None:
    """Of any kind, or none; a wrong token, or nobody there."""
    manager = ManagerSource(calls(), nodes[0].address)
    for error in ("StorageFull", "AccessDenied", "os", "Exception", "failure"):
        nodes[0].answer = lambda request, _, error=error: request.refuse(507, error, "no")  # type: ignore[misc]
        with pytest.raises(SourceUnavailable):
            read(manager)
    strange = ManagerSource(calls(token=Token.new()), nodes[0].address)
    with pytest.raises(SourceUnavailable, match="no"):
        read(strange)
    with pytest.raises(GearError):
        read(ManagerSource(calls(), "127.0.0.1:1"))


def test_tls_knows_both_sides(tmp_path: Path, nodes: list[FakeNode]) -> None:
    """By the CA of the cluster; the node sees the asker's certificate."""
    folder = certificates.make(tmp_path / "certificates")
    cert, key, ca = (folder / name for name in ("server.pem", "server.key", "ca.pem"))
    tls = Tls(cert, key, ca)
    node = nodes[0]
    node.socket = tls.server_context().wrap_socket(node.socket, server_side=True)
    members = members_of(nodes[:1])

    def homes(context: ssl.SSLContext | None) -> HomesSource:
        calls = Calls(TOKEN, tls=context, connect_s=2, stall_s=5)
        return HomesSource(calls, lambda: members, ME, hedge_s=5, aside=Aside(Clock()))

    assert read(homes(tls.client_context())) == CONTENT
    strangers = ssl.create_default_context()
    unnamed = ssl.create_default_context(cafile=ca)
    for context in (strangers, unnamed, None):
        with pytest.raises(SourceUnavailable):
            read(homes(context))
    assert len(node.requests) == 1


def test_aside_grows_to_five_minutes_and_counts_a_crash_once() -> None:
    """Requests that were under way when a node was set aside change nothing."""
    clock = Clock()
    aside = Aside(clock)
    begun_s = aside.now_s()
    clock.now_s += 1
    assert [aside.fault("n", begun_s) for _ in range(3)] == [1, None, None]
    assert aside.fault("n", aside.now_s()) is None
    aside.success("n", begun_s)
    assert "n" in aside
    pauses = []
    for _ in range(10):
        clock.now_s += 301
        assert "n" not in aside
        pauses.append(aside.fault("n", aside.now_s()))
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    aside.success("n", aside.now_s())
    assert aside.fault("n", aside.now_s()) == 1


def test_no_limit_never_waits() -> None:
    """0: no bound."""
    RateLimit(0, sleep=lambda _: pytest.fail("slept")).take(1 << 40)

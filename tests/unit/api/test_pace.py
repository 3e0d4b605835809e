"""Who is cut off, and who is not, by what the kernel says of real connections."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from gear_plugin.api.pace import Watch
from tests.waiting import eventually

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, peer:
        yield ours, peer


def fill(ours: socket.socket) -> int:
    """Send until no more goes; how much went."""
    ours.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += ours.send(b"x" * 65536)
    return sent


def is_cut(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        while peer.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    return True


def test_waiting_for_anything_else_is_free(pair: Pair) -> None:
    """
    A store that takes minutes is not the peer's fault.
    """
    ours, peer = pair
    watch = Watch(10, 1000)
    ours.sendall(b"head")
    assert peer.recv(10) == b"head"
    with watch.holding(ours):
        for _ in range(100):
            watch.look(60)
    assert not is_cut(peer)


def test_a_peer_that_does_not_read_has_its_grace(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    ours, peer = pair
    watch = Watch(10, 1 << 40)
    with watch.holding(ours):
        fill(ours)
        for _ in range(9):
            watch.look(1)
        assert not caplog.records
        for _ in range(3):
            watch.look(1)
    assert is_cut(peer)
    assert "cut off 127.0.0.1, which reads too slowly" in caplog.text


def test_a_peer_that_does_not_send_has_its_grace(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    ours, peer = pair
    watch = Watch(10, 1000)
    with watch.holding(ours) as held:
        held.reading = True
        for _ in range(10):
            watch.look(1)
        assert not caplog.records
        watch.look(1)
    assert is_cut(peer)
    assert "sends too slowly" in caplog.text


def test_what_moves_earns_time(pair: Pair) -> None:
    """
    A second for each 1,000 bytes, here.
    """
    ours, peer = pair
    watch = Watch(0, 1000)
    with watch.holding(ours) as held:
        held.reading = True
        peer.sendall(b"x" * 50_000)
        eventually(lambda: len(ours.recv(50_000, socket.MSG_PEEK)) == 50_000)
        watch.look(49)
        assert not is_cut(peer)
        watch.look(2)
    assert is_cut(peer)


def test_bytes_of_earlier_requests_earn_nothing(pair: Pair) -> None:
    """
    Nor does a connection that was kept for long.
    """
    ours, peer = pair
    watch = Watch(1, 1000)
    peer.sendall(b"x" * 50_000)
    eventually(lambda: len(ours.recv(50_000, socket.MSG_PEEK)) == 50_000)
    with watch.holding(ours) as held:
        held.reading = True
        watch.look(2)
    assert is_cut(peer)


def test_a_connection_let_go_is_not_touched(pair: Pair) -> None:
    ours, peer = pair
    watch = Watch(0, 1)
    with watch.holding(ours) as held:
        held.reading = True
    watch.look(1e9)
    assert not is_cut(peer)


def test_a_connection_that_its_thread_closed_is_passed_over(pair: Pair) -> None:
    ours, _ = pair
    watch = Watch(0, 1)
    with watch.holding(ours):
        ours.close()
        watch.look(1e9)

"""A TCP port under callers that are slow or hostile: a real server process, real sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import certificates
from tests.waiting import eventually

# Callers from .2 are hostile, from .1 honest: the loopback network has both.
HONEST, HOSTILE = "127.0.0.1", "127.0.0.2"

PROGRAM = """
import sys
from pathlib import Path
from flask import Flask, Response, request
from gear_plugin.api.connections import Limits
from gear_plugin.api.serve import serve

MEBIBYTE = b"x" * (1 << 20)

def app():
    made = Flask("tests")
    made.add_url_rule("/", "root", lambda: "whole answer")
    made.add_url_rule("/large", "large", lambda: Response([MEBIBYTE] * 64))
    made.add_url_rule("/body", "body", lambda: str(len(request.stream.read())), methods=["POST"])
    made.add_url_rule("/unread", "unread", lambda: "not read", methods=["POST"])
    return made

tls = {}
if len(sys.argv) > 2:
    folder = Path(sys.argv[2])
    tls = {"certfile": folder / "server.pem", "keyfile": folder / "server.key"}
limits = Limits(connections=100, head_s=1.0, idle_s=1.0, grace_s=0.5, min_bytes_s=1 << 20,
                tick_s=0.2)
serve(app, sys.argv[1], threads=8, log_level="warning", limits=limits, **tls)
"""


class Port:
    """The server, and ways to talk to it."""

    def __init__(self, certificate: Path | None, program: str = PROGRAM) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        tls = [str(certificate)] if certificate else []
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, f"127.0.0.1:{self.port}", *tls]
        )
        self._tls = None
        if certificate:
            self._tls = ssl.create_default_context(cafile=certificate / "ca.pem")
        eventually(self.answers)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def raw(self, source: str) -> socket.socket:
        """A TCP connection, without TLS."""
        return socket.create_connection(("127.0.0.1", self.port), 10, source_address=(source, 0))

    def connect(self, source: str = HONEST) -> socket.socket:
        raw = self.raw(source)
        return self._tls.wrap_socket(raw, server_hostname="127.0.0.1") if self._tls else raw

    def answers(self) -> bool:
        """Whether an honest caller gets its answer in 5 s; if threads were held, it would not."""
        try:
            with contextlib.closing(self.connect()) as connection:
                connection.settimeout(5)
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return read_all(connection).endswith(b"whole answer")
        except OSError:
            return False


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def read_answer(connection: socket.socket, end: bytes) -> bytes:
    answer = b""
    while not answer.endswith(end):
        piece = connection.recv(4096)
        assert piece, f"cut off: {answer!r}"
        answer += piece
    return answer


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has ended it; waits 10 s for it to."""
    connection.settimeout(10)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.fixture(scope="module", params=["plain", "tls"])
def port(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Port]:
    certificate = None
    if request.param == "tls":
        certificate = certificates.make(tmp_path_factory.mktemp("tls"))
    port = Port(certificate)
    yield port
    assert port.stop() == 0


@pytest.fixture
def hostile(port: Port) -> Iterator[Callable[[int, bytes], list[socket.socket]]]:
    """Opens connections that say *what* and no more."""
    opened = contextlib.ExitStack()

    def open_many(count: int, what: bytes) -> list[socket.socket]:
        found = []
        for _ in range(count):
            connection = opened.enter_context(contextlib.closing(port.connect(HOSTILE)))
            connection.sendall(what)
            found.append(connection)
        return found

    with opened:
        yield open_many


Hostile = Callable[[int, bytes], list[socket.socket]]


def test_silent_connections_hold_up_nobody(port: Port) -> None:
    """
    More than there are threads, nor do they stay: TLS not even begun.
    """
    held = [port.raw(HOSTILE) for _ in range(50)]
    assert port.answers()
    for connection in held:
        assert is_closed(connection)
        connection.close()


@pytest.mark.parametrize("head", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_half_heads_hold_up_nobody(port: Port, hostile: Hostile, head: bytes) -> None:
    held = hostile(50, head)
    assert port.answers()
    assert all(is_closed(connection) for connection in held)


def test_a_head_byte_by_byte_has_a_deadline(port: Port, hostile: Hostile) -> None:
    """
    Each byte is progress; the whole head counts.
    """
    (connection,) = hostile(1, b"GET / HTTP/1.1\r\n")
    begun = time.monotonic()
    with contextlib.suppress(OSError):
        for _ in range(100):
            connection.sendall(b"X")
            time.sleep(0.05)
    assert is_closed(connection)
    assert time.monotonic() - begun < 4


def test_a_flood_of_connections_lets_honest_callers_in() -> None:
    """
    More than the port keeps: those that have kept it waiting longest go, before their time.
    """
    port = Port(None, PROGRAM.replace("head_s=1.0", "head_s=60.0"))
    with contextlib.ExitStack() as opened:
        for _ in range(250):
            opened.enter_context(port.raw(HOSTILE)).sendall(b"GET ")
        assert port.answers()
    assert port.stop() == 0


def test_a_head_without_end_is_refused(port: Port, hostile: Hostile) -> None:
    (connection,) = hostile(1, b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000)
    assert read_all(connection).startswith(b"HTTP/1.1 431 ")


def test_no_request_at_all_does_no_harm(port: Port, hostile: Hostile) -> None:
    """
    Noise, and hanging up at once.
    """
    for connection in hostile(5, os.urandom(300) + b"\r\n\r\n"):
        connection.settimeout(5)
        with contextlib.suppress(OSError):
            read_all(connection)
    for _ in range(20):
        port.raw(HOSTILE).close()
    assert port.answers()


def test_bodies_that_do_not_come_are_cut_off(port: Port, hostile: Hostile) -> None:
    """
    They hold threads for their grace, but never all of them.
    """
    head = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    held = hostile(80, head + b"a")
    assert port.answers(), "there is always a thread for another address"
    for connection in held:
        with contextlib.suppress(OSError):
            connection.sendall(b"a")
    assert all(is_closed(connection) for connection in held)


def test_a_body_byte_by_byte_is_cut_off(port: Port, hostile: Hostile) -> None:
    """
    Slower than the lowest rate, whatever its steadiness.
    """
    (connection,) = hostile(1, b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    begun = time.monotonic()
    with pytest.raises(OSError):
        for _ in range(200):
            connection.sendall(b"a")
            time.sleep(0.05)
    assert time.monotonic() - begun < 8


def test_readers_that_do_not_read_are_cut_off(port: Port, hostile: Hostile) -> None:
    """
    And the honest are served meanwhile.
    """
    held = hostile(80, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    assert port.answers()
    eventually(lambda: _threads_free(port), "all threads being free", timeout_s=30)
    assert len(b"".join(_rest(held[0]))) < 64 << 20


def _rest(connection: socket.socket) -> Iterator[bytes]:
    connection.settimeout(10)
    with contextlib.suppress(OSError):
        while piece := connection.recv(1 << 20):
            yield piece


def _threads_free(port: Port) -> bool:
    """Whether the hostile address itself is served again."""
    try:
        with contextlib.closing(port.connect(HOSTILE)) as connection:
            connection.settimeout(1)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return read_all(connection).endswith(b"whole answer")
    except OSError:
        return False


def test_a_reader_that_takes_its_time_gets_all(port: Port) -> None:
    """
    Faster than the lowest rate is fast enough, with pauses.
    """
    with contextlib.closing(port.connect()) as connection:
        connection.sendall(b"GET /large HTTP/1.0\r\nHost: x\r\n\r\n")
        got = 0
        for piece in _rest(connection):
            if got // (8 << 20) != (got + len(piece)) // (8 << 20):
                time.sleep(0.2)
            got += len(piece)
        assert got > 64 << 20


def test_connections_are_kept_between_requests(port: Port) -> None:
    """
    A node asks another again and again.
    """
    with contextlib.closing(port.connect()) as connection:
        for _ in range(20):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            read_answer(connection, b"whole answer")
        assert is_closed(connection), "an idle one ends"


def test_two_requests_at_once_get_two_answers(port: Port) -> None:
    """
    The second one's head was read with the first one's.
    """
    with contextlib.closing(port.connect()) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        answer = b""
        while answer.count(b"whole answer") < 2:
            answer += read_answer(connection, b"whole answer")


def test_a_body_that_nobody_read_does_not_become_a_request(port: Port) -> None:
    """
    Its connection is not used again, and the answer comes all the same.
    """
    with contextlib.closing(port.connect()) as connection:
        body = b"GET /large HTTP/1.1\r\n\r\n"
        head = b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % (len(body) + 100_000) + body)
        assert read_all(connection).endswith(b"not read")


def test_an_early_answer_outlives_a_body_on_its_way(port: Port) -> None:
    """
    Closing at once would reset the connection under the answer.
    """
    with contextlib.closing(port.connect()) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n")
        connection.sendall(b"x" * 300_000)
        assert read_answer(connection, b"not read")


def test_a_stopped_server_ends_what_is_idle(tmp_path: Path) -> None:
    """
    At once, not when it times out.
    """
    port = Port(None)
    with contextlib.closing(port.connect()) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        read_answer(connection, b"whole answer")
        begun = time.monotonic()
        assert port.stop() == 0
        assert time.monotonic() - begun < 4


def test_callers_without_a_certificate_stay_out(tmp_path: Path) -> None:
    """
    With a CA both sides show who they are.
    """
    folder = certificates.make(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    program = PROGRAM.replace('"server.key"}', '"server.key", "ca_certs": folder / "ca.pem"}')
    process = subprocess.Popen([sys.executable, "-c", program, f"127.0.0.1:{number}", str(folder)])

    def ask(context: ssl.SSLContext) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", number), 5) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return read_all(connection)

    def is_up() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", number), 5).close()
            return True
        return False

    try:
        eventually(is_up)
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        with pytest.raises(OSError):
            assert not ask(context), "answered"
            raise ConnectionResetError
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        assert ask(context).endswith(b"whole answer")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)

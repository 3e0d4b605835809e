"""The server under the plugin's calls."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import eventually

_PROGRAM = """
import sys
from flask import Flask
from gear_plugin.api.serve import serve

def app():
    made = Flask("tests")
    made.add_url_rule("/", "root", lambda: "whole answer")
    return made

serve(app, sys.argv[1], threads=32, log_level="warning")
"""
_HELD = 16


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, object]]:
    if request.param == "unix":
        family, where = socket.AF_UNIX, str(tmp_path / "s")
        bind: str = f"unix:{where}"
        address: object = where
    else:
        family = socket.AF_INET
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = free.getsockname()
        bind = f"127.0.0.1:{address[1]}"  # type: ignore[index]
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM, bind])
    try:
        eventually(lambda: _can_connect(family, address))
        yield family, address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _can_connect(family: int, address: object) -> bool:
    try:
        _connect(family, address).close()
    except OSError:
        return False
    return True


def _connect(family: int, address: object) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.settimeout(10)
    try:
        made.connect(address)  # type: ignore[arg-type]
    except OSError:
        made.close()
        raise
    return made


def _ask(family: int, address: object) -> tuple[socket.socket, bytes]:
    connection = _connect(family, address)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"whole answer"):
        piece = connection.recv(4096)
        assert piece, f"cut off: {answer!r}"
        answer += piece
    return connection, answer


def test_clients_that_do_not_close_hold_up_nobody(address: tuple[int, object]) -> None:
    held = []
    begun = time.monotonic()
    try:
        for _ in range(_HELD):
            connection, answer = _ask(*address)
            held.append(connection)
            is_docker = address[0] == socket.AF_UNIX
            assert (b"connection: close" in answer.lower()) == is_docker
        assert time.monotonic() - begun < _HELD, "each waited for the one before"
    finally:
        for connection in held:
            connection.close()

"""A mount that is made as soon as it can be."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from gear_plugin.errors import TimedOut
from gear_plugin.jobs.nfs_keeper import NfsKeeper
from tests.waiting import eventually

LONG_S = 60.0


class Server:
    """What a mount meets."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.attempts = 0
        self.hangs = threading.Event()
        self.hangs.set()

    def mount(self) -> None:
        self.attempts += 1
        self.hangs.wait()
        if self.trouble is not None:
            raise self.trouble


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def keeper(server: Server) -> Iterator[NfsKeeper]:
    keeper = NfsKeeper(server.mount, first_pause_s=0.001, last_pause_s=0.01)
    yield keeper
    keeper.stop()


def test_a_server_that_is_up_is_mounted_before_start_returns(
    server: Server, keeper: NfsKeeper
) -> None:
    """
    And looked after from then on.
    """
    assert keeper.trouble is None
    keeper.start(wait_s=LONG_S)
    assert keeper.trouble == ""
    eventually(lambda: server.attempts > 3, "it is looked after")


def test_a_server_that_is_down_is_tried_again(
    server: Server, keeper: NfsKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Its trouble is known, and said once, not at each attempt; so is its end.
    """
    caplog.set_level(logging.INFO)
    server.trouble = TimedOut("no answer")
    keeper.start(wait_s=LONG_S)
    assert keeper.trouble == "no answer"
    eventually(lambda: server.attempts > 3, "it is tried again")
    server.trouble = None
    eventually(lambda: keeper.trouble == "", "it is mounted")
    assert [record.getMessage() for record in caplog.records] == [
        "no answer",
        "the store is mounted",
    ]
    caplog.clear()


def test_nobody_waits_for_a_server_that_hangs(server: Server, keeper: NfsKeeper) -> None:
    """
    The start goes on.
    """
    server.hangs.clear()
    keeper.start(wait_s=0.01)
    assert keeper.trouble is None
    server.hangs.set()
    eventually(lambda: keeper.trouble == "", "it is mounted")


def test_a_bug_does_not_end_it(
    server: Server, keeper: NfsKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Its traceback is in the log.
    """
    server.trouble = ValueError("what")
    keeper.start(wait_s=LONG_S)
    assert keeper.trouble == "internal error; see the log"
    server.trouble = None
    eventually(lambda: keeper.trouble == "", "it goes on")
    assert "ValueError: what" in caplog.text
    caplog.clear()


def test_after_a_stop_nothing_is_tried(server: Server, keeper: NfsKeeper) -> None:
    """
    Its thread ends.
    """
    keeper.start(wait_s=LONG_S)
    keeper.stop()
    eventually(lambda: not keeper._thread.is_alive(), "its thread ends")
    attempts = server.attempts
    assert server.attempts == attempts

"""Functions that hang, die or fail, each in a process of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from gear_plugin.errors import ImageNotFound
from gear_plugin.jobs.apart import call_apart, run_apart


def counts() -> Iterator[int]:
    yield from range(3)


def hangs() -> Iterator[str]:
    yield "begun"
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
    time.sleep(600)


def dies() -> Iterator[str]:
    yield "begun"
    os.kill(os.getpid(), signal.SIGKILL)


def leaves() -> Iterator[str]:
    yield "begun"
    os._exit(7)


def fails() -> Iterator[str]:
    yield "begun"
    raise ImageNotFound("no such image")


def test_each_gives_what_it_found() -> None:
    """
    One that hangs, dies or fails keeps what it had, and holds up nobody else.
    """
    began = time.monotonic()
    outcomes = run_apart([counts, hangs, dies, leaves, fails], timeout_s=2)
    assert time.monotonic() - began < 30
    assert [outcome.values for outcome in outcomes] == [[0, 1, 2], *[["begun"]] * 4]
    troubles = [outcome.trouble for outcome in outcomes]
    assert troubles == [
        "",
        "no answer within 2 s",
        f"ended with signal {signal.SIGKILL}",
        "ended with status 7",
        "",
    ]
    errors = [outcome.error for outcome in outcomes]
    assert errors[:4] == [None] * 4
    assert isinstance(errors[4], ImageNotFound) and str(errors[4]) == "no such image"
    assert "fails" in errors[4].__notes__[0]


def test_they_run_at_the_same_time() -> None:
    """
    Ten that hang take as long as one.
    """
    began = time.monotonic()
    assert len(run_apart([hangs] * 10, timeout_s=1)) == 10
    assert time.monotonic() - began < 8


def test_no_child_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Those that could be killed were reaped.
    """
    children: list[int] = []
    fork = os.fork

    def noted() -> int:
        children.append(fork())
        return children[-1]

    monkeypatch.setattr(os, "fork", noted)
    run_apart([counts, hangs, dies], timeout_s=0.5)
    assert len(children) == 3
    for child in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


def test_a_large_value_arrives_whole() -> None:
    """
    Larger than a pipe holds.
    """
    assert call_apart(lambda: b"x" * 3_000_000, timeout_s=30).values == [b"x" * 3_000_000]


def test_nothing_to_do() -> None:
    """
    Returns at once.
    """
    assert run_apart([], timeout_s=60) == []

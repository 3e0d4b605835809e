"""A source's threads: what counts as a stall, and what giving up costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from gear_plugin.content import MemoryStore
from gear_plugin.content.lane import STUCK_LIMIT, Lane, Task
from gear_plugin.errors import SourceUnavailable


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def started(lane: Lane, gate: threading.Event) -> Task:
    """A task that is running and hangs."""
    running = threading.Event()

    def run(_task: Task) -> None:
        running.set()
        gate.wait(10)

    task = Task(run)
    lane.submit(task)
    assert running.wait(5)
    return task


def until_returned(lane: Lane) -> None:
    deadline = time.monotonic() + 5
    while lane.stuck:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_threads_are_used_again() -> None:
    """One after the other needs one thread."""
    lane = Lane(MemoryStore(), workers=8)
    names: set[int] = set()
    for _ in range(20):
        done = threading.Event()

        def run(_task: Task, done: threading.Event = done) -> None:
            names.add(threading.get_ident())
            done.set()

        lane.submit(Task(run))
        assert done.wait(5)
        time.sleep(0.002)
    assert len(names) <= 2


def test_first_task_after_a_quiet_time_is_not_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queued task's clock starts when it is made, however long nobody asked before."""
    monkeypatch.setattr(threading.Thread, "start", lambda _thread: None)
    lane = Lane(MemoryStore(), workers=1)
    time.sleep(0.1)
    task = Task(lambda _task: None)
    lane.submit(task)
    assert lane.stalled_for_s(task) < 0.1


def test_queued_task_moves_with_the_lane(gate: threading.Event) -> None:
    """It is not stalled while the one before it gets bytes, and is when that hangs."""
    lane = Lane(MemoryStore(), workers=1)
    first = started(lane, gate)
    second = Task(lambda _task: None)
    lane.submit(second)
    time.sleep(0.06)
    assert lane.stalled_for_s(second) >= 0.05
    lane.progressed(first)
    assert lane.stalled_for_s(second) < 0.05


def test_given_up_task_makes_room(gate: threading.Event) -> None:
    """Another thread takes the place of the stuck one, which is counted until it returns."""
    lane = Lane(MemoryStore(), workers=1)
    first = started(lane, gate)
    lane.abandon(first)
    lane.abandon(first)
    assert lane.stuck == 1
    second = started(lane, gate)
    gate.set()
    until_returned(lane)
    assert not second.is_abandoned


def test_queued_task_given_up_never_runs(gate: threading.Event) -> None:
    """It costs no thread, and is not counted as stuck."""
    lane = Lane(MemoryStore(), workers=1)
    started(lane, gate)
    ran: list[str] = []
    queued, last = Task(lambda _task: ran.append("queued")), Task(lambda _task: ran.append("last"))
    lane.submit(queued)
    lane.submit(last)
    lane.abandon(queued)
    assert lane.stuck == 0
    gate.set()
    deadline = time.monotonic() + 5
    while not ran:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert ran == ["last"]


def test_giving_up_what_is_over_counts_nothing() -> None:
    """The waiter may notice the stall in the moment when the read returns."""
    lane = Lane(MemoryStore(), workers=1)
    task = Task(lambda _task: None)
    lane.submit(task)
    deadline = time.monotonic() + 5
    while not task.is_over:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    lane.abandon(task)
    assert lane.stuck == 0


def test_stalled_source_refuses_until_one_returns(
    gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """At STUCK_LIMIT it fails at once; with one back it is tried again."""
    lane = Lane(MemoryStore("nfs"), workers=2)
    one = threading.Event()
    lane.abandon(started(lane, one))
    for _ in range(STUCK_LIMIT - 1):
        lane.abandon(started(lane, gate))
    with pytest.raises(SourceUnavailable, match="nfs is stalled: 16 reads hang"):
        lane.submit(Task(lambda _task: None))
    one.set()
    deadline = time.monotonic() + 5
    while lane.stuck == STUCK_LIMIT:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    started(lane, gate)
    caplog.clear()

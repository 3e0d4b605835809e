"""Work that may never return, watched from a thread that always does."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from gear_plugin.errors import StorageFull, TimedOut
from gear_plugin.jobs import Watch, watched
from gear_plugin.jobs.watched import Abandoned
from tests.unit.jobs.fakes import Recorder

LONG_S = 60.0


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_GRACE_S", 0.1)


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What hung work waits for; at the end of the test it goes on."""
    event = threading.Event()
    yield event
    event.set()


def test_a_call_gives_what_the_function_gives() -> None:
    """Value or exception."""
    watch = Watch("x", LONG_S, Recorder())
    assert watch.call(lambda: 7) == 7
    with pytest.raises(StorageFull, match="no room"):
        watch.call(lambda: (_ for _ in ()).throw(StorageFull("no room")))


def test_every_item_is_worked_on_once() -> None:
    """By all threads together."""
    done: list[int] = []
    Watch("x", LONG_S, Recorder()).run(done.append, range(1000), threads=4)
    assert sorted(done) == list(range(1000))


def test_the_first_failure_stops_the_rest() -> None:
    """Items that nobody has begun are left."""
    done: list[int] = []

    def work(item: int) -> None:
        if item == 3:
            raise KeyError(item)
        done.append(item)

    with pytest.raises(KeyError):
        Watch("x", LONG_S, Recorder()).run(work, range(10**9), threads=2)
    assert 3 not in done


def test_failing_items_fail_the_run() -> None:
    """An iterator may raise as well as the work."""

    def items() -> Iterator[int]:
        yield 1
        raise KeyError

    with pytest.raises(KeyError):
        Watch("x", LONG_S, Recorder()).run(lambda _: None, items(), threads=2)


def test_a_stall_is_said_and_then_given_up(hang: threading.Event) -> None:
    """Once each; the thread that hangs is left behind."""
    progress = Recorder()
    with pytest.raises(TimedOut, match=r"store y has not moved for 0\.3 s; try again"):
        Watch("store y", 0.3, progress).call(hang.wait)
    (note,) = progress.notes
    assert note.startswith("waiting for store y: nothing for 0 s, given up after 0.3 s")


def test_whoever_moves_is_waited_for() -> None:
    """However long it takes altogether."""
    watch = Watch("x", 0.5, Recorder())
    begun_s = time.monotonic()

    def slow() -> bool:
        while time.monotonic() - begun_s < 1.0:
            watch.moved()
            time.sleep(0.01)
        return True

    assert watch.call(slow)


def test_work_that_goes_on_learns_that_it_was_abandoned(hang: threading.Event) -> None:
    """So that it ends, and cleans up, when it moves the next time."""
    watch = Watch("x", 0.2, Recorder())
    ended = threading.Event()

    def work() -> None:
        hang.wait()
        try:
            watch.moved()
        except Abandoned:
            ended.set()

    with pytest.raises(TimedOut):
        watch.call(work)
    hang.set()
    assert ended.wait(10)


def test_an_interrupt_does_not_wait_for_what_hangs(hang: threading.Event) -> None:
    """Ctrl-C works, whatever the store does."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        Watch("x", LONG_S, Recorder()).call(hang.wait)
    timer.join()

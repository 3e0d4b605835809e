from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from gear_plugin.jobs.parallel import for_each


def test_every_item_is_done_once() -> None:
    """
    All items, each by exactly one thread.
    """
    done: list[int] = []
    for_each(done.append, range(1000), threads=4)
    assert sorted(done) == list(range(1000))


def test_no_items_are_fine() -> None:
    """
    Nothing to do is no error.
    """
    for_each(lambda _: pytest.fail("called"), [], threads=3)


def test_items_are_taken_only_when_a_thread_is_free() -> None:
    """
    Memory does not grow with the number of items.
    """
    taken, gate = 0, threading.Semaphore(0)

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1, 101):
            taken = number
            yield number

    def work(_: int) -> None:
        assert gate.acquire(timeout=10), "nobody opened the gate"

    runner = threading.Thread(target=lambda: for_each(work, items(), threads=3))
    runner.start()
    time.sleep(0.1)
    assert taken == 3
    gate.release(100)
    runner.join()
    assert taken == 100


@pytest.mark.parametrize("broken", ["function", "items"])
def test_first_failure_stops_the_rest_and_is_raised(broken: str) -> None:
    """
    An error is never lost, and what was not begun is not begun any more.
    """
    done: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10_000):
            if broken == "items" and number == 5:
                raise KeyError("items")
            yield number

    def work(number: int) -> None:
        if broken == "function" and number == 5:
            raise KeyError("function")
        time.sleep(0.001)
        done.append(number)

    with pytest.raises(KeyError, match=broken):
        for_each(work, items(), threads=2)
    assert len(done) < 100


def test_a_function_may_raise_stop_iteration() -> None:
    """
    It is an error like any other, not the end of the items.
    """

    def work(_: int) -> None:
        raise StopIteration

    with pytest.raises(StopIteration):
        for_each(work, [1], threads=1)


def test_an_interrupt_ends_it_with_no_thread_left() -> None:
    """
    Ctrl-C waits for the items at hand alone.
    """
    before = threading.active_count()
    done: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(KeyboardInterrupt):
        for_each(work, range(1000), threads=2)
    assert threading.active_count() == before
    assert len(done) < 50


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_stopping_cuts_short_what_the_threads_wait_for(error: type[BaseException]) -> None:
    """
    Called before the threads are waited for, at a failure and at an interrupt.
    """
    released, waiting = threading.Event(), threading.Event()

    def work(item: int) -> None:
        if item == 0:
            waiting.set()
            assert released.wait(30)
        elif error is ZeroDivisionError:
            waiting.wait(30)
            raise error

    def items() -> Iterator[int]:
        yield 0
        yield 1

    if error is KeyboardInterrupt:
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(error):
        for_each(work, items(), threads=2, stopping=released.set)
    assert released.is_set()

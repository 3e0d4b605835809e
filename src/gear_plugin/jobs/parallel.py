"""
One function over many items, in threads.

Unlike an executor it takes the next item only when a thread is free, so that
memory does not grow with the number of items, and an interrupt waits for the
items at hand alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar, cast

T = TypeVar("T")

_END = object()


def for_each(
    function: Callable[[T], None],
    items: Iterable[T],
    *,
    threads: int,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """
    Call *function* with every item, in the order of *items*, *threads* at a time.

    The first exception, of *function* or *items*, stops the rest and is raised
    when every thread has ended.  *stopping* is called as soon as that happens,
    or an interrupt: it may cut short what the threads are waiting for.
    """
    source = iter(items)
    taking = threading.Lock()
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                with taking:
                    item = next(source, _END)
                if item is _END:
                    return
                function(cast(T, item))
        except BaseException as error:
            failures.append(error)
            stop.set()
            stopping()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except BaseException:
        stopping()
        raise
    finally:
        stop.set()
        for worker in workers:
            if worker.ident is not None:
                worker.join()
    if failures:
        raise failures[0]

"""How fast bytes may go."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gear_plugin.content.rate import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_bytes_take_their_time() -> None:
    """
    Ten megabytes at one a second, but for a tenth of a second's worth at once.
    """
    clock = Clock()
    limit = RateLimit(1_000_000, clock=clock, sleep=clock.sleep)
    moments = [clock.now_s]
    for _ in range(100):
        limit.take(100_000)
        moments.append(clock.now_s)
    assert moments[-1] - moments[0] == pytest.approx(9.9)
    assert max(after - before for before, after in pairwise(moments)) == pytest.approx(0.1)


def test_a_pause_is_not_saved_up() -> None:
    clock = Clock()
    limit = RateLimit(1000, clock=clock, sleep=clock.sleep)
    clock.now_s += 3600
    before_s = clock.now_s
    limit.take(2000)
    assert clock.now_s - before_s == pytest.approx(1.9)


def test_no_limit_waits_for_nothing() -> None:
    def never(_seconds: float) -> None:
        raise AssertionError

    RateLimit(0, sleep=never).take(1 << 40)

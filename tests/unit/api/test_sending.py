"""The limit that all answers share."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gear_plugin.api.sending import PIECE_BYTES, UploadLimit


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
    limit = UploadLimit(1_000_000, clock=clock, sleep=clock.sleep)
    moments = [clock.now_s]
    for _ in range(100):
        limit.pass_through(100_000)
        moments.append(clock.now_s)
    assert moments[-1] - moments[0] == pytest.approx(9.9)
    assert max(after - before for before, after in pairwise(moments)) == pytest.approx(0.1)


def test_a_pause_is_not_saved_up() -> None:
    clock = Clock()
    limit = UploadLimit(1000, clock=clock, sleep=clock.sleep)
    clock.now_s += 3600
    before_s = clock.now_s
    limit.pass_through(2000)
    assert clock.now_s - before_s == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("bytes_s", "piece"),
    [(0, PIECE_BYTES), (1 << 30, PIECE_BYTES), (1000, 4096), (100_000, 10_000)],
)
def test_pieces_fit_the_limit(bytes_s: int, piece: int) -> None:
    assert UploadLimit(bytes_s).piece_bytes == piece


def test_no_limit_waits_for_nothing() -> None:
    def never(_seconds: float) -> None:
        raise AssertionError

    UploadLimit(0, sleep=never).pass_through(1 << 40)

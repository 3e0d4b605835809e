"""Objects on their way to other nodes."""

from __future__ import annotations

import pytest

from gear_plugin.api.sending import PIECE_BYTES, piece_bytes
from gear_plugin.content.rate import RateLimit


@pytest.mark.parametrize(
    ("bytes_s", "piece"),
    [(0, PIECE_BYTES), (1 << 30, PIECE_BYTES), (1000, 4096), (100_000, 10_000)],
)
def test_pieces_fit_the_limit(bytes_s: int, piece: int) -> None:
    assert piece_bytes(RateLimit(bytes_s)) == piece

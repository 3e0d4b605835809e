"""The stream of many objects."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gear_plugin.api.batch import Batch
from gear_plugin.api.sending import PIECE_BYTES, Getting, PublicObjects
from gear_plugin.content.rate import RateLimit
from gear_plugin.digest import Digest
from gear_plugin.errors import SourceUnavailable, TimedOut
from tests.unit.api.port_node import FakeClient, publish
from tests.waiting import eventually

ABSENT = (2**64 - 1).to_bytes(8, "big")


def make(root: Path, client: FakeClient, asked: list[Digest], timeout_s: float = 10) -> Batch:
    getting = Getting(client.obtain, workers=4, timeout_s=timeout_s)
    return Batch(asked, PublicObjects(root), getting, RateLimit(0))


def test_small_objects_share_pieces(tmp_path: Path) -> None:
    """
    A send costs as much as 4 KiB of content.
    """
    contents = [os.urandom(4096) for _ in range(500)]
    batch = make(tmp_path, FakeClient(tmp_path), [publish(tmp_path, c) for c in contents])
    pieces = list(batch.pieces())
    assert all(len(piece) >= PIECE_BYTES for piece in pieces[:-1])
    assert len(pieces) <= 500 * 4136 // PIECE_BYTES + 1
    assert b"".join(pieces) == b"".join(
        Digest.of(c).raw + (4096).to_bytes(8, "big") + c for c in contents
    )
    assert (batch.sent, batch.absent) == (500, 0)


def test_missing_objects_are_asked_for_ahead_but_not_all_at_once(tmp_path: Path) -> None:
    client = FakeClient(tmp_path)
    contents = [b"%d" % number for number in range(200)]
    client.elsewhere = {Digest.of(c): c for c in contents}
    client.allowed.clear()
    batch = make(tmp_path, client, list(client.elsewhere))
    pieces = batch.pieces()
    import threading

    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(pieces))
    reader.start()
    eventually(lambda: client.asking == 4, "asking with all workers")
    client.allowed.set()
    reader.join(10)
    assert batch.sent == 200
    assert client.most_asking == 4


def test_what_is_ready_is_sent_before_a_wait(tmp_path: Path) -> None:
    """
    The asker must see that this node lives.
    """
    client = FakeClient(tmp_path)
    here, there = publish(tmp_path, b"here"), Digest.of(b"there")
    client.elsewhere[there] = b"there"
    client.allowed.clear()
    pieces = make(tmp_path, client, [here, there]).pieces()
    assert next(pieces).endswith(b"here")
    client.allowed.set()
    assert next(pieces).endswith(b"there")


def test_a_source_that_does_not_answer_is_waited_for_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Not once an object; what is here goes on coming.
    """
    client = FakeClient(tmp_path)
    client.error = SourceUnavailable("the store does not answer")
    here = publish(tmp_path, b"here")
    missing = [Digest.of(b"%d" % number) for number in range(1000)]
    batch = make(tmp_path, client, [*missing, here])
    assert b"".join(batch.pieces()).endswith(b"here")
    assert (batch.sent, batch.absent) == (1, 1000)
    assert len(client.obtained) < 200
    assert "getting no more objects" in caplog.text


def test_an_object_that_does_not_come_in_time_cannot_be_had(tmp_path: Path) -> None:
    client = FakeClient(tmp_path)
    client.allowed.clear()
    digest = Digest.of(b"late")
    assert b"".join(make(tmp_path, client, [digest], 0.01).pieces()) == digest.raw + ABSENT
    client.allowed.set()


def test_an_object_that_went_since_it_was_seen_is_got_again(tmp_path: Path) -> None:
    """
    Eviction goes on meanwhile.
    """
    client = FakeClient(tmp_path)
    first, second = publish(tmp_path, b"first"), publish(tmp_path, b"second")
    client.elsewhere[second] = b"second"
    batch = make(tmp_path, client, [first, second])
    opened = batch._public.open

    def open_and_evict(digest: Digest) -> object:
        if not client.obtained:
            (tmp_path / "public" / second.shard_path).unlink(missing_ok=True)
        return opened(digest)

    batch._public.open = open_and_evict  # type: ignore[method-assign, assignment]
    assert b"".join(batch.pieces()).endswith(b"second")
    assert client.obtained == [(second, None)]


def test_an_object_cut_short_breaks_the_stream_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Its size was sent: the asker must not take the next record for its content.
    """
    digest = publish(tmp_path, b"x" * (3 * PIECE_BYTES))
    pieces = make(tmp_path, FakeClient(tmp_path), [digest]).pieces()
    next(pieces)
    with (tmp_path / "public" / digest.shard_path).open("r+b") as file:
        file.truncate(PIECE_BYTES)
    with pytest.raises(ConnectionResetError):
        list(pieces)
    assert "shorter than it was" in caplog.text


def test_getting_gives_up_with_a_clear_word(tmp_path: Path) -> None:
    client = FakeClient(tmp_path)
    client.allowed.clear()
    getting = Getting(client.obtain, workers=1, timeout_s=0.01)
    with pytest.raises(TimedOut, match=r"in 0.01 s"):
        getting.wait(getting.start(Digest.of(b"x")))
    client.allowed.set()

"""What a manager knows of the nodes, for the many who ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from gear_plugin.catalog import MemoryRoster
from gear_plugin.cluster import Members
from gear_plugin.errors import SourceUnavailable
from gear_plugin.jobs.lookout import Lookout
from tests.waiting import eventually

A, B = "a" * 32, "b" * 32
LONG_S = 60.0
"""Longer than any test runs."""


class Roster(MemoryRoster):
    """One that counts, and can be down."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.is_down = False

    def wait(self, version: int, timeout_s: float) -> Members:
        self.waits += 1
        if self.is_down:
            raise SourceUnavailable("no etcd answers")
        return super().wait(version, 0.05)


@pytest.fixture
def roster() -> Roster:
    return Roster()


@pytest.fixture
def lookout(roster: Roster) -> Iterator[Lookout]:
    """Started, and it knows node A."""
    roster.join(A, "10.0.0.1:2020")
    lookout = Lookout(roster, limit=8)
    lookout.start()
    eventually(lambda: lookout.wait(-1, LONG_S))
    yield lookout
    lookout.stop()


def waiting(lookout: Lookout, version: int, count: int = 1) -> list[Members]:
    """What so many more get who wait for news, each in a thread of its own."""
    found: list[Members] = []
    before = lookout.waiting
    for _ in range(count):
        threading.Thread(target=lambda: found.append(lookout.wait(version, LONG_S))).start()
    eventually(lambda: lookout.waiting == before + count, "all to wait")
    return found


def test_it_hears_of_changes(roster: Roster, lookout: Lookout) -> None:
    """All who wait are told; those who know another version at once."""
    before = lookout.now()
    found = waiting(lookout, before.version, 5)
    after = roster.join(B, "10.0.0.2:2020")
    eventually(lambda: found == [after] * 5, "all to be told")
    assert lookout.wait(before.version, LONG_S) == lookout.now() == after


def test_many_who_wait_cost_the_catalog_nothing(roster: Roster, lookout: Lookout) -> None:
    """There is one question at a time, whoever waits."""
    found = waiting(lookout, lookout.now().version, 8)
    waits = roster.waits
    eventually(lambda: roster.waits > waits)
    assert roster.waits - waits < 8
    roster.join(B, "10.0.0.2:2020")
    eventually(lambda: len(found) == 8)


def test_waiting_in_vain_ends(lookout: Lookout) -> None:
    """With what is known."""
    assert lookout.wait(lookout.now().version, 0.01) == lookout.now()


def test_who_is_too_many_does_not_wait(roster: Roster, lookout: Lookout) -> None:
    """The answer comes at once."""
    found = waiting(lookout, lookout.now().version, 8)
    assert lookout.wait(lookout.now().version, LONG_S) == lookout.now()
    assert found == []
    roster.join(B, "10.0.0.2:2020")
    eventually(lambda: len(found) == 8)


def test_an_offer_is_news_at_once(roster: Roster, lookout: Lookout) -> None:
    """What this manager changed itself need not come back from the catalog first."""
    found = waiting(lookout, lookout.now().version)
    newer = Members(lookout.now().version + 1, ())
    roster.is_down = True
    lookout.offer(newer)
    eventually(lambda: found == [newer])


def test_an_older_offer_is_none(lookout: Lookout) -> None:
    """Two joins at once may finish in any order."""
    before = lookout.now()
    lookout.offer(Members(before.version - 1, ()))
    assert lookout.now() == before


def test_a_catalog_that_was_set_up_anew_counts(roster: Roster, lookout: Lookout) -> None:
    """Though its versions are lower."""
    for number in range(5):
        roster.join(A, f"10.0.0.{number}:2020")
    eventually(lambda: lookout.now().version == 6)
    roster._version = 2
    eventually(lambda: lookout.now().version == 2, "the lower version")


def test_what_was_known_stays_while_the_catalog_is_down(
    roster: Roster, lookout: Lookout, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; whoever asks is answered."""
    before = lookout.now()
    roster.is_down = True
    eventually(lambda: caplog.messages, "the warning")
    assert lookout.now() == before
    assert lookout.wait(before.version, 0.01) == before
    roster.is_down = False
    after = roster.join(B, "10.0.0.2:2020")
    eventually(lambda: lookout.now() == after, "news")
    assert len([m for m in caplog.messages if "no etcd answers" in m]) == 1


def test_nothing_is_known_at_first(roster: Roster) -> None:
    """Which is said, instead of an empty list that a node would believe."""
    lookout = Lookout(roster, limit=8)
    with pytest.raises(SourceUnavailable, match="has not answered"):
        lookout.now()
    with pytest.raises(SourceUnavailable, match="has not answered"):
        lookout.wait(3, LONG_S)


def test_changes_that_come_together_are_told_together(roster: Roster) -> None:
    """Who waits while many nodes join is not woken for each; also not when it asks again."""
    lookout = Lookout(roster, limit=8, settle_s=LONG_S)
    lookout.start()
    eventually(lambda: roster.waits > 1)
    before = lookout.now()
    found = waiting(lookout, before.version, 2)
    for number in range(10):
        lookout.offer(roster.join(f"{number:032x}", "10.0.0.1:2020"))
    late = waiting(lookout, before.version)
    assert found == late == []
    lookout.stop()
    eventually(lambda: len(found + late) == 3, "the end of waiting")
    assert set(found + late) == {roster.members()}


def test_who_waits_is_let_go_at_the_end(lookout: Lookout) -> None:
    """A manager that stops need not wait for those who wait for news."""
    found = waiting(lookout, lookout.now().version, 3)
    lookout.stop()
    eventually(lambda: found == [lookout.now()] * 3)

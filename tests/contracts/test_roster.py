"""The suite that every roster passes (`catalog/roster.py`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from gear_plugin.catalog import MemoryRoster, Roster, open_roster
from gear_plugin.cluster import Member, Members

T = TypeVar("T")

A, B, C = (f"{number:032x}" for number in (10, 11, 12))
MANAGER, OTHER = "e" * 32, "f" * 32
LONG_S = 60.0
"""Longer than any test runs."""


@pytest.fixture(params=["memory", "sqlite", "etcd"])
def users(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Roster]]:
    """Two users of one roster, of each kind; the etcd is a real one."""
    users: list[Roster]
    match request.param:
        case "memory":
            users = [MemoryRoster()] * 2
        case "sqlite":
            users = [open_roster(f"sqlite://{tmp_path}/catalog") for _ in range(2)]
        case _:
            users = [open_roster(request.getfixturevalue("etcd_url")) for _ in range(2)]
    yield users
    for user in users:
        user.close()


@pytest.fixture
def roster(users: list[Roster]) -> Roster:
    return users[0]


def at_once(calls: list[Callable[[], T]]) -> list[T]:
    """What the calls return, each made in a thread of its own, all let go together."""
    gate = threading.Barrier(len(calls))
    results: list[T] = []

    def run(call: Callable[[], T]) -> None:
        gate.wait()
        results.append(call())

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(calls)
    return results


def test_there_is_one_identity(users: list[Roster]) -> None:
    """Whoever asks first makes it, however many ask at once; it stays."""
    tokens = at_once([user.identity for user in users for _ in range(4)])
    assert len({token.text() for token in tokens}) == 1
    assert users[1].identity() == tokens[0]


def test_an_empty_roster(roster: Roster) -> None:
    """No nodes, no reports, and a version to start with."""
    assert roster.members() == Members(0, ())
    assert roster.reports() == {}


def test_who_joins_is_live(users: list[Roster]) -> None:
    """All users see the same: nodes by id, and a version that has grown."""
    first = users[0].join(B, "10.0.0.2:2020")
    second = users[1].join(A, "10.0.0.1:2020")
    assert first.nodes == (Member(B, "10.0.0.2:2020"),)
    assert second.nodes == (Member(A, "10.0.0.1:2020"), Member(B, "10.0.0.2:2020"))
    assert 0 < first.version < second.version
    assert users[0].members() == users[1].members() == second


def test_joining_again_is_no_news(roster: Roster) -> None:
    """A node that restarts disturbs nobody; one that moved, or was dead, does."""
    joined = roster.join(A, "10.0.0.1:2020")
    assert roster.join(A, "10.0.0.1:2020") == joined
    moved = roster.join(A, "10.0.0.9:2020")
    assert moved.nodes == (Member(A, "10.0.0.9:2020"),)
    assert moved.version > joined.version
    dead = roster.set_live({A: False})
    back = roster.join(A, "10.0.0.9:2020")
    assert back.nodes == (Member(A, "10.0.0.9:2020"),)
    assert back.version > dead.version > moved.version


def test_who_leaves_is_off_the_list(roster: Roster) -> None:
    """To leave twice, or without having been there, changes nothing."""
    roster.join(A, "10.0.0.1:2020")
    joined = roster.join(B, "10.0.0.2:2020")
    left = roster.leave(A)
    assert left.nodes == (Member(B, "10.0.0.2:2020"),)
    assert left.version > joined.version
    assert roster.leave(A) == left
    assert roster.leave(C) == left


def test_who_is_live_can_change(roster: Roster) -> None:
    """Several at once are one change or more; what is so already, or unknown, is none."""
    for number, node in enumerate((A, B, C)):
        joined = roster.join(node, f"10.0.0.{number}:2020")
    dead = roster.set_live({A: False, B: False, C: True, "0" * 32: True})
    assert [node.is_live for node in dead.nodes] == [False, False, True]
    assert dead.version > joined.version
    assert roster.set_live({A: False, C: True, "0" * 32: False}) == dead
    assert roster.set_live({}) == dead
    live = roster.set_live({A: True})
    assert [node.is_live for node in live.live()] == [True, True]
    assert live.version > dead.version


def test_hundreds_of_nodes_change_at_once(roster: Roster) -> None:
    """More than one transaction of etcd may hold."""
    nodes = [f"{number:032x}" for number in range(250)]
    for node in nodes:
        roster.join(node, "10.0.0.1:2020")
    dead = roster.set_live(dict.fromkeys(nodes, False))
    assert len(dead.nodes) == len(nodes)
    assert dead.live() == ()


def test_nodes_that_join_at_once_are_all_there(users: list[Roster]) -> None:
    """No join is lost, and none has the version of another."""
    nodes = [f"{number:032x}" for number in range(20)]

    def join(node: str, user: Roster) -> Callable[[], Members]:
        return lambda: user.join(node, f"{node[-2:]}:2020")

    at_once([join(node, users[at % 2]) for at, node in enumerate(nodes)])
    members = users[0].members()
    assert [member.node for member in members.nodes] == nodes
    last = users[1].leave(nodes[0])
    assert last.version > members.version


def test_waiting_ends_with_a_change(users: list[Roster]) -> None:
    """Made by another user; the answer is the nodes after it."""
    before = users[0].join(A, "10.0.0.1:2020")
    found: list[Members] = []
    waiting = threading.Thread(target=lambda: found.append(users[0].wait(before.version, LONG_S)))
    waiting.start()
    after = users[1].join(B, "10.0.0.2:2020")
    waiting.join(LONG_S / 2)
    assert found == [after]


def test_waiting_for_another_version_ends_at_once(roster: Roster) -> None:
    """Also when the version asked about is newer: it may be of a catalog that is no more."""
    joined = roster.join(A, "10.0.0.1:2020")
    begun_s = time.monotonic()
    assert roster.wait(0, LONG_S) == joined
    assert roster.wait(joined.version + 100, LONG_S) == joined
    assert time.monotonic() - begun_s < LONG_S / 2


def test_waiting_in_vain_ends_too(roster: Roster) -> None:
    """With the nodes as they are."""
    joined = roster.join(A, "10.0.0.1:2020")
    assert roster.wait(joined.version, 0.01) == joined


def test_reports_have_rounds(users: list[Roster]) -> None:
    """Each manager's latest, whose round grows even when it sees the same."""
    users[0].report(MANAGER, [A, B])
    first = users[1].reports()
    assert first[MANAGER].seen == {A, B}
    users[0].report(MANAGER, [B, A])
    users[1].report(OTHER, [])
    second = users[0].reports()
    assert second.keys() == {MANAGER, OTHER}
    assert second[MANAGER].seen == {A, B}
    assert second[MANAGER].round > first[MANAGER].round
    assert second[OTHER].seen == frozenset()
    users[0].report(MANAGER, [C])
    third = users[1].reports()
    assert third[MANAGER].seen == {C}
    assert third[MANAGER].round > second[MANAGER].round
    assert third[OTHER] == second[OTHER]


def test_reports_are_no_news_of_nodes(roster: Roster) -> None:
    """A round of checks that finds all as it was wakes nobody."""
    joined = roster.join(A, "10.0.0.1:2020")
    roster.report(MANAGER, [A])
    assert roster.members() == joined

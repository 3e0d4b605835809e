"""The manager's checks: who is dead, who is live, and what two managers make of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from gear_plugin.catalog import MemoryRoster
from gear_plugin.cluster import Member, Members
from gear_plugin.errors import SourceUnavailable
from gear_plugin.jobs.checks import ROW, Checks
from tests.waiting import eventually

A, B, C = (letter * 32 for letter in "abc")
ONE, TWO = "1" * 32, "2" * 32


class Net:
    """Which nodes a manager reaches."""

    def __init__(self) -> None:
        self.cut: set[str] = set()
        self.asked: list[str] = []

    def ask(self, member: Member) -> None:
        self.asked.append(member.node)
        if member.node in self.cut:
            raise SourceUnavailable("no route to host")


@pytest.fixture
def roster() -> MemoryRoster:
    roster = MemoryRoster()
    for number, node in enumerate((A, B, C)):
        roster.join(node, f"10.0.0.{number}:2020")
    return roster


def checks(roster: MemoryRoster, net: Net, manager: str = ONE) -> Checks:
    return Checks(roster, manager, net.ask)


def live(members: Members) -> set[str]:
    return {member.node for member in members.live()}


def rounds(count: int, *all_checks: Checks) -> Members:
    """So many rounds of each manager, in turn; the nodes after the last."""
    assert count and all_checks
    for _ in range(count):
        for one in all_checks:
            members = one.round()
    return members


def test_nodes_that_answer_are_left_alone(roster: MemoryRoster) -> None:
    """A round without news is no news to anybody."""
    before = roster.members()
    net = Net()
    assert checks(roster, net).round() == before
    assert sorted(net.asked) == [A, B, C]
    assert roster.reports()[ONE].seen == {A, B, C}


def test_three_failures_in_a_row_make_a_node_dead(roster: MemoryRoster) -> None:
    """Not two; and one answer makes it live again."""
    net = Net()
    manager = checks(roster, net)
    net.cut = {B}
    assert live(rounds(ROW - 1, manager)) == {A, B, C}
    assert live(manager.round()) == {A, C}
    assert roster.reports()[ONE].seen == {A, C}
    net.cut = set()
    assert live(manager.round()) == {A, B, C}


def test_an_answer_ends_the_row(roster: MemoryRoster) -> None:
    """Failures count only one after another."""
    net = Net()
    manager = checks(roster, net)
    for _ in range(3):
        net.cut = {B}
        assert live(rounds(ROW - 1, manager)) == {A, B, C}
        net.cut = set()
        manager.round()


def test_another_manager_vouches_for_a_node(roster: MemoryRoster) -> None:
    """One that is cut off from a node that others see does not kill it."""
    near, far = Net(), Net()
    far.cut = {A, B, C}
    one, two = checks(roster, far, ONE), checks(roster, near, TWO)
    before = roster.members()
    assert rounds(4 * ROW, one, two) == before


def test_a_manager_that_died_vouches_for_nobody(roster: MemoryRoster) -> None:
    """Its last report says for ever that it saw the node."""
    near, far = Net(), Net()
    one, two = checks(roster, far, ONE), checks(roster, near, TWO)
    rounds(2, one, two)
    far.cut = {B}
    assert live(rounds(ROW - 1, one, two)) == {A, B, C}
    # From here on the second is dead; what it saw since the row began still counts, once.
    assert live(one.round()) == {A, B, C}
    assert live(rounds(ROW, one)) == {A, C}


def test_an_old_report_does_not_count(roster: MemoryRoster) -> None:
    """What was seen before the row began says nothing."""
    near, far = Net(), Net()
    one, two = checks(roster, far, ONE), checks(roster, near, TWO)
    rounds(5, two)
    far.cut = {B}
    assert live(rounds(ROW, one)) == {A, C}


def test_both_managers_see_nothing(roster: MemoryRoster) -> None:
    """A node that no manager reaches is dead, however many managers report."""
    first, second = Net(), Net()
    one, two = checks(roster, first, ONE), checks(roster, second, TWO)
    first.cut = second.cut = {C}
    assert live(rounds(ROW, one, two)) == {A, B}
    second.cut = set()
    assert live(rounds(1, one, two)) == {A, B, C}
    assert live(rounds(3 * ROW, one, two)) == {A, B, C}


def test_a_node_that_joins_again_gets_a_new_row(roster: MemoryRoster) -> None:
    """To have been dead before does not make it die sooner; nor do failures at its old address."""
    net = Net()
    manager = checks(roster, net)
    net.cut = {B}
    rounds(ROW, manager)
    roster.join(B, "10.0.0.1:2020")
    assert live(rounds(ROW - 1, manager)) == {A, B, C}
    roster.join(B, "10.0.0.9:2020")
    assert live(rounds(ROW - 1, manager)) == {A, B, C}
    assert live(manager.round()) == {A, C}


def test_a_node_that_left_is_asked_no_more(roster: MemoryRoster) -> None:
    """And does not come back by answering."""
    net = Net()
    manager = checks(roster, net)
    manager.round()
    roster.leave(B)
    net.asked.clear()
    assert live(manager.round()) == {A, C}
    assert sorted(net.asked) == [A, C]


def test_what_has_changed_is_passed_on(roster: MemoryRoster) -> None:
    """The nodes after each round, and each check's outcome."""
    net = Net()
    net.cut = {B}
    told: list[Members] = []
    outcomes: list[bool] = []
    manager = Checks(
        roster,
        ONE,
        net.ask,
        changed=told.append,
        observe=lambda _time, is_seen: outcomes.append(is_seen),
    )
    rounds(ROW, manager)
    assert [live(members) for members in told] == [{A, B, C}, {A, B, C}, {A, C}]
    assert sorted(outcomes) == [False] * ROW + [True] * 2 * ROW


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a node that hangs waits for."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_node_that_hangs_holds_nobody_up(roster: MemoryRoster, gate: threading.Event) -> None:
    """It counts as silent, and is not asked again before it has ended: one thread at most."""
    asked: list[str] = []

    def ask(member: Member) -> None:
        asked.append(member.node)
        if member.node == B:
            gate.wait(60)

    manager = Checks(roster, ONE, ask, workers=2, stall_s=0.05)
    assert live(rounds(ROW, manager)) == {A, C}
    assert asked.count(B) == 1
    assert asked.count(A) == ROW
    gate.set()
    eventually(lambda: live(manager.round()) == {A, B, C}, "the node to be live")


class Flaky(MemoryRoster):
    """A catalog that can be down."""

    is_down = False

    def members(self) -> Members:
        if self.is_down:
            raise SourceUnavailable("no etcd answers")
        return super().members()


def test_checks_go_on_when_the_catalog_is_back(caplog: pytest.LogCaptureFixture) -> None:
    """What fails is said once, not once a round."""
    roster, net, stopped = Flaky(), Net(), threading.Event()
    roster.join(A, "10.0.0.1:2020")
    roster.is_down = True
    manager = checks(roster, net)
    thread = threading.Thread(target=manager.run, args=(stopped, 0.01))
    thread.start()
    eventually(lambda: caplog.messages == ["the nodes cannot be checked: no etcd answers"])
    assert net.asked == []
    roster.is_down = False
    eventually(lambda: len(net.asked) > 1, "checks")
    stopped.set()
    thread.join(10)
    assert not thread.is_alive()
    assert len(caplog.messages) == 1

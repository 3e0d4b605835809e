"""The simulation of many nodes, on fleets whose answer is known."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from bench import fleet, results
from bench.fleet_model import Change, Fleet, RememberingMembers, Thing, nodes, rehomed, spread
from bench.results import Row

from gear_plugin.cluster import Members, route
from gear_plugin.digest import Digest

THINGS = [Thing(Digest.of(b"%d" % number), 100 + number) for number in range(30)]
ALL_BYTES = sum(thing.size_bytes for thing in THINGS)


def members(count: int) -> Members:
    """So many nodes, always the same."""
    return Members(1, nodes(count, Random(3)))


def made(count: int) -> Fleet:
    """A fleet of so many nodes that have nothing yet."""
    return Fleet(members(count), THINGS, Random(5))


def test_remembered_members_answer_as_real_ones() -> None:
    real = members(20)
    for _ in range(2):
        for thing in THINGS:
            remembered = RememberingMembers(1, real.nodes)
            for node in real.nodes:
                found = route(thing.digest, remembered, node.node)
                assert found == route(thing.digest, real, node.node)


@pytest.mark.parametrize(("count", "reads"), [(1, 1), (2, 2), (3, 2), (25, 2)])
def test_each_home_reads_an_object_once_and_all_others_ask(count: int, reads: int) -> None:
    outcome = made(count).run()
    assert outcome.reads == [reads] * len(THINGS)
    assert outcome.read_bytes == reads * ALL_BYTES
    askers = max(0, count - 2)
    assert sum(outcome.requests.values()) == askers * len(THINGS)
    assert sum(outcome.sent_bytes.values()) == askers * ALL_BYTES
    assert outcome.refused == 0


def test_both_homes_serve() -> None:
    """
    Each of them about half of the nodes that are no home.
    """
    outcome = made(10).run()
    for node in members(10).nodes:
        kept = [thing for thing in THINGS if node in members(10).homes(thing.digest)]
        assert abs(outcome.requests.get(node.node, 0) - 4 * len(kept)) <= len(kept)


def test_when_both_homes_die_the_next_in_line_read_not_everybody() -> None:
    count = 20
    fleet = made(count)
    gone = [home.node for home in members(count).homes(THINGS[0].digest)]
    fleet.die(gone)
    for node in members(count).nodes:
        if node.node not in gone:
            fleet.want(node.node, 0)
    assert fleet.outcome.reads[0] == 2
    assert fleet.outcome.refused == 2 * fleet.outcome.wanted
    assert sum(fleet.outcome.requests.values()) == count - 4


def test_who_was_refused_does_not_ask_the_dead_node_again() -> None:
    """
    Until there is news of who is live.
    """
    fleet = made(3)
    asker, dead = members(3).nodes[:2]
    fleet.die([dead.node])
    for place in range(len(THINGS)):
        fleet.want(asker.node, place)
    assert fleet.outcome.refused == 1


@pytest.mark.parametrize(
    "change",
    [
        Change(dying=0.3, lag=0.5),
        Change(joining=0.5),
        Change(dying=0.2, joining=0.2, lagging=0.5, lag=0.3),
    ],
)
def test_whatever_happens_every_node_that_lives_gets_everything(change: Change) -> None:
    fleet = made(20)
    outcome = fleet.run(change)
    assert fleet.lacking() == 0
    assert min(outcome.reads) >= 1
    assert 3 > outcome.reads_each() > 1.8


def test_the_same_seed_gives_the_same_run() -> None:
    change = Change(dying=0.2, joining=0.2, lagging=0.5, lag=0.3)
    assert made(20).run(change) == made(20).run(change)


def test_load_is_compared_with_the_mean() -> None:
    """
    One object of three nodes: one of them answers the one that is no home.
    """
    found = spread(members(3), THINGS[:1])
    assert (found.requests, found.sent, found.most_bytes) == (3.0, 3.0, 100.0)
    assert spread(members(2), THINGS).requests == 0.0
    whole = made(10).run()
    found = spread(members(10), THINGS)
    assert found.most_bytes == pytest.approx(max(whole.sent_bytes.values()), rel=0.3)
    peak = max(whole.requests.values()) * 10 / sum(whole.requests.values())
    assert found.requests == pytest.approx(peak, rel=0.3)


def test_copies_that_move_are_those_with_a_new_home() -> None:
    two = members(2)
    assert rehomed(two, two, THINGS) == 0.0
    assert rehomed(Members(1, two.nodes[:1]), two, THINGS) == 0.5
    assert rehomed(Members(1, ()), two, THINGS) == 1.0


def test_the_goal_is_for_the_quiet_run_and_the_usual_changes() -> None:
    def row(system: str, reads: float) -> Row:
        return Row("fleet_reads", "9 nodes", "-", system, reads, reads, reads, 1, "reads")

    assert fleet.misses([row("quiet", 2.1), row("1 % die", 2.0), row("10 % join", 2.3)]) == []
    assert fleet.misses([row("quiet", 2.2)]) == ["9 nodes, quiet: 2.200"]


def test_a_small_run_writes_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fleet, "IMAGE_OBJECTS", 50)
    place = tmp_path / "fleet.json"
    argv = ["fleet", "--nodes", "3,10", "--objects", "20", "--results", str(place)]
    monkeypatch.setattr("sys.argv", argv)
    assert fleet.main() == 0
    found = {(row.image, row.system): row.median for row in results.read(place)
             if row.measure == "fleet_reads"}  # fmt: skip
    assert found["3 nodes", "quiet"] == found["10 nodes", "quiet"] == 2.0
    assert "goal: at most 2.1 reads an object" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--nodes", "0"], ["--nodes", "a"], ["--objects", "0"]])
def test_options_that_make_no_sense_end_it(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        fleet.parse(argv)

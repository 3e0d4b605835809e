"""
`python -m bench.fleet`: what a cluster of many nodes asks of the store, and of its nodes.

The nodes' own code (`gear_plugin.cluster`) decides who asks whom; the rest is
simulated (fleet_model.py).  A table and the goal go to stdout, rows to
build/bench/fleet.json.  The same seed gives the same figures, but for times.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from rich.console import Console
from tests.engine import plugin

from bench import report, results
from bench.fleet_model import Change, Fleet, Outcome, Thing, nodes, rehomed, spread
from bench.options import counts
from bench.ordinary import draw_size_bytes
from gear_plugin.cluster import HOMES, Members, route
from gear_plugin.digest import Digest

PROFILE_OBJECTS = 400
"""What a start opens: the image's first objects."""
IMAGE_OBJECTS = 15_000
QUIET = "quiet"
CHANGES = {
    "1 % die": Change(dying=0.01, lag=1 / 8),
    "half hear late": Change(dying=0.01, joining=0.01, lagging=0.5, lag=1 / 2),
    "10 % die": Change(dying=0.10, lag=1 / 8),
    "10 % join": Change(joining=0.10),
}
"""In the middle of the start; see Change.  An eighth of a start stands for the 15 s of checks."""
GOAL_READS = HOMES + 0.1
GOAL_FOR = (QUIET, "1 % die", "half hear late")
_TIMED = 300
RESULTS = plugin.BUILD / "bench" / "fleet.json"


@dataclass(frozen=True)
class Options:
    """What is simulated."""

    nodes: tuple[int, ...] = (1_000, 10_000)
    objects: int = PROFILE_OBJECTS
    seed: int = 1
    results: Path = RESULTS


def main() -> int:
    """See the module's text; 1 if the store was read too often."""
    chosen = parse(sys.argv[1:])
    found = results.Results()
    for count in chosen.nodes:
        measure(count, chosen, found)
    rows = found.rows()
    results.write(chosen.results, rows, merge=False)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in report.tables(rows):
        console.print(table)
    missed = misses(rows)
    print(f"goal: at most {GOAL_READS} reads an object in {', '.join(GOAL_FOR)}: ", end="")
    print(f"NOT met: {'; '.join(missed)}" if missed else "met")
    return 1 if missed else 0


def parse(argv: Sequence[str]) -> Options:
    """The options; ends the program with a message if they make no sense."""
    parser = ArgumentParser(prog="python -m bench.fleet", description="many nodes, simulated")
    parser.add_argument("--nodes", type=counts, default=Options.nodes, metavar="N,N")
    text = f"objects of the start; {PROFILE_OBJECTS}"
    parser.add_argument("--objects", type=int, default=PROFILE_OBJECTS, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    given = parser.parse_args(argv)
    if given.objects < 1:
        parser.error("--objects: a number above 0")
    return Options(given.nodes, given.objects, given.seed, given.results)


def measure(count: int, chosen: Options, found: results.Results) -> None:
    """All figures of a fleet of *count* nodes."""
    about = f"{count:,} nodes"
    chance = Random(f"{chosen.seed} {count}")
    members = Members(1, nodes(count, chance))
    image = things(IMAGE_OBJECTS, chance)
    start = image[: chosen.objects]

    def add(measure: str, system: str, value: float) -> None:
        found.add(measure, about, "-", system, value)

    _times(members, image, add)
    for name, part in ((f"start, {len(start)}", start), (f"image, {len(image):,}", image)):
        even = spread(members, part)
        add("fleet_requests_peak", name, even.requests)
        add("fleet_sent_peak", name, even.sent)
        add("fleet_sent_most_bytes", name, even.most_bytes)
    quiet = _run(about, QUIET, members, start, None, chosen)
    _add_outcome(add, QUIET, quiet, quiet, count)
    for name, change in CHANGES.items():
        outcome = _run(about, name, members, start, change, chosen)
        _add_outcome(add, name, outcome, quiet, count)
        after = changed(members, change, chance)
        share = rehomed(members, after, image)
        add("fleet_rehomed", name, 100 * share)
        add("fleet_rehomed_bytes", name, share * HOMES * sum(thing.size_bytes for thing in image))


def things(count: int, chance: Random) -> list[Thing]:
    """Objects with sizes as in an ordinary image."""
    return [Thing(Digest(chance.randbytes(32)), draw_size_bytes(chance)) for _ in range(count)]


def changed(members: Members, change: Change, chance: Random) -> Members:
    """The members after such a change."""
    count = len(members.nodes)
    gone = set(chance.sample(members.nodes, round(change.dying * count)))
    left = tuple(node for node in members.nodes if node not in gone)
    return Members(members.version + 1, left + nodes(round(change.joining * count), chance))


def misses(rows: Sequence[results.Row]) -> list[str]:
    """Where the store was read more often than it may be."""
    return [
        f"{row.image}, {row.system}: {row.median:.3f}"
        for row in rows
        if row.measure == "fleet_reads" and row.system in GOAL_FOR and row.median > GOAL_READS
    ]


def _run(
    about: str, name: str, members: Members, start: Sequence[Thing], change: Change | None,
    chosen: Options,
) -> Outcome:  # fmt: skip
    begun = time.monotonic()
    outcome = Fleet(members, start, Random(chosen.seed)).run(change)
    took = time.monotonic() - begun
    print(f"{about}, {name}: {outcome.wanted:,} objects wanted, {took:.0f} s", file=sys.stderr)
    return outcome


def _add_outcome(
    add: Callable[[str, str, float], None], name: str, outcome: Outcome, quiet: Outcome, count: int
) -> None:
    add("fleet_reads", name, outcome.reads_each())
    add("fleet_reads_worst", name, max(outcome.reads))
    add("fleet_refused", name, outcome.refused / count)
    if outcome is not quiet:
        add("fleet_more_bytes", name, outcome.read_bytes - quiet.read_bytes)


def _times(
    members: Members, image: Sequence[Thing], add: Callable[[str, str, float], None]
) -> None:
    """What a node pays for a new list of members, and then for each object that it lacks."""
    me = members.nodes[0].node
    for _ in range(5):
        fresh = Members(members.version, members.nodes)
        begun = time.perf_counter()
        route(image[0].digest, fresh, me)
        add("fleet_members_s", QUIET, time.perf_counter() - begun)
    for thing in image[1 : _TIMED + 1]:
        begun = time.perf_counter()
        route(thing.digest, fresh, me)
        add("fleet_route_s", QUIET, time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main())

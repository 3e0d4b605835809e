"""
Many nodes that start one image at once, simulated: who gets which object from whom.

What decides is the code that a node runs: `route` over `Members`.  Here is only
what surrounds it: each node wants all objects in the same order, one a tick, and
begins at a tick of its own.  In the middle a `Change` may come: nodes die, others
join, and not everybody hears of it at once.

A home that lacks an object reads it from the store, once, and keeps it; so does a
node that has nobody to ask.  A dead node refuses, and who was refused passes it
over until the next news; when all of a route refuse, another is asked for, once.
There is no time in it, nor the size of anybody's link.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from gear_plugin.cluster import HOMES, Member, Members, route
from gear_plugin.digest import Digest


class RememberingMembers(Members):
    """Members that look the homes of an object up once: here all nodes are in one process."""

    @functools.cached_property
    def _known(self) -> dict[tuple[Digest, int], list[Member]]:
        return {}

    def homes(self, digest: Digest, count: int = HOMES) -> list[Member]:
        """As in the base class."""
        known = self._known.get((digest, count))
        if known is None:
            known = self._known[digest, count] = super().homes(digest, count)
        return known


@dataclass(frozen=True)
class Thing:
    """One object of the image."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True)
class Change:
    """What happens in the middle: shares of the nodes, and ticks as a share of the objects."""

    dying: float = 0.0
    joining: float = 0.0
    lagging: float = 1.0
    """So many of the nodes have the old list of members for `lag` longer."""
    lag: float = 0.0


@dataclass
class Outcome:
    """What a run came to."""

    reads: list[int]
    """Reads from the store, of each object."""
    read_bytes: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    """Objects that each node handed to others."""
    sent_bytes: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    """Requests to nodes that were dead."""
    wanted: int = 0
    """Objects that nodes wanted and got."""

    def reads_each(self) -> float:
        """Reads from the store per object, in the mean."""
        return sum(self.reads) / len(self.reads)


class Fleet:
    """*members* that start the image of *things*; one run each."""

    def __init__(self, members: Members, things: Sequence[Thing], chance: Random) -> None:
        self._things = things
        self._chance = chance
        self._now = RememberingMembers(members.version, members.nodes)
        self._view: dict[str, Members] = {node.node: self._now for node in members.live()}
        """The members that each running node knows."""
        self._aside: dict[str, set[str]] = {node: set() for node in self._view}
        self._has: dict[str, bytearray] = {node: bytearray(len(things)) for node in self._view}
        self._begin = {node: chance.randrange(len(things)) for node in self._view}
        self.outcome = Outcome([0] * len(things))

    def run(self, change: Change | None = None) -> Outcome:
        """All nodes get all objects, but those that die."""
        middle = len(self._things)
        tick = 0
        told: dict[int, list[str]] = {}
        while any(begin + len(self._things) > tick for begin in self._begin.values()):
            if tick == middle and change is not None:
                told = self._change(change, tick)
            for node in told.get(tick, ()):
                self._view[node] = self._now
                self._aside[node] = set()
            for node, begin in self._begin.items():
                place = tick - begin
                if 0 <= place < len(self._things):
                    self.want(node, place)
            tick += 1
        return self.outcome

    def want(self, node: str, place: int) -> None:
        """*node* gets the object at *place*, in the order of docs/decisions/0007-cluster.md."""
        if self._has[node][place]:
            return
        self.outcome.wanted += 1
        thing, aside = self._things[place], self._aside[node]
        for home in route(thing.digest, self._view[node], node, aside):
            if self._serve(home.node, place, thing):
                break
            aside.add(home.node)
        else:
            again = route(thing.digest, self._view[node], node, aside) if aside else []
            if not any(self._serve(home.node, place, thing) for home in again):
                self._read(place, thing)
        self._has[node][place] = 1

    def die(self, names: Collection[str]) -> None:
        """These nodes are gone with what they had; nobody is told."""
        for node in names:
            del self._view[node], self._aside[node], self._has[node], self._begin[node]

    def lacking(self) -> int:
        """Objects that running nodes do not have."""
        return sum(has.count(0) for has in self._has.values())

    def _serve(self, home: str, place: int, thing: Thing) -> bool:
        """Whether *home* answered; it asks nobody but the store."""
        outcome = self.outcome
        if home not in self._has:
            outcome.refused += 1
            return False
        if not self._has[home][place]:
            self._read(place, thing)
            self._has[home][place] = 1
        outcome.requests[home] = outcome.requests.get(home, 0) + 1
        outcome.sent_bytes[home] = outcome.sent_bytes.get(home, 0) + thing.size_bytes
        return True

    def _read(self, place: int, thing: Thing) -> None:
        self.outcome.reads[place] += 1
        self.outcome.read_bytes += thing.size_bytes

    def _change(self, change: Change, tick: int) -> dict[int, list[str]]:
        """Let it happen; returns who hears of it when."""
        running = list(self._view)
        dead = set(self._chance.sample(running, round(change.dying * len(running))))
        self.die(dead)
        joined = nodes(round(change.joining * len(running)), self._chance)
        self._now = RememberingMembers(
            self._now.version + 1,
            tuple(
                sorted(
                    [replace(node, is_live=node.node not in dead) for node in self._now.nodes]
                    + list(joined)
                )
            ),
        )
        left = list(self._view)
        late = set(self._chance.sample(left, round(change.lagging * len(left))))
        for member in joined:
            self._view[member.node] = self._now
            self._aside[member.node] = set()
            self._has[member.node] = bytearray(len(self._things))
            self._begin[member.node] = tick
        told: dict[int, list[str]] = {}
        for node in left:
            when = tick + (round(change.lag * len(self._things)) if node in late else 0)
            told.setdefault(when, []).append(node)
        return told


def nodes(count: int, chance: Random) -> tuple[Member, ...]:
    """New nodes with random ids."""
    ids = (f"{chance.getrandbits(128):032x}" for _ in range(count))
    return tuple(sorted(Member(node, f"h{node[:12]}:2020") for node in ids))


@dataclass(frozen=True)
class Spread:
    """How even the load is when all nodes get all of an image from its homes."""

    requests: float
    """The busiest node's requests in multiples of the mean."""
    sent: float
    """The same of bytes."""
    most_bytes: float
    """What the node that sends most sends, bytes."""


def spread(members: Members, things: Sequence[Thing]) -> Spread:
    """
    Every object is asked of whom its route names first, by all but its homes:
    one half of them begin with the first home, the other with the second.
    """
    live = members.live()
    requests = dict.fromkeys((node.node for node in live), 0)
    sent = dict(requests)
    for thing in things:
        ways = (route(thing.digest, members, node.node) for node in live[: HOMES + 1])
        homes = sorted(next((way for way in ways if way), ()))
        askers = len(live) - HOMES
        for number, home in enumerate(homes):
            share = (askers + number) // len(homes)
            requests[home.node] += share
            sent[home.node] += share * thing.size_bytes
    return Spread(
        _peak(list(requests.values())), _peak(list(sent.values())), float(max(sent.values()))
    )


def _peak(values: Sequence[int]) -> float:
    total = sum(values)
    return max(values) * len(values) / total if total else 0.0


def rehomed(before: Members, after: Members, things: Sequence[Thing]) -> float:
    """The share of the copies at homes, by bytes, that the second members keep elsewhere."""
    moved = total = 0
    for thing in things:
        old = {home.node for home in before.homes(thing.digest)}
        new = {home.node for home in after.homes(thing.digest)}
        moved += len(new - old) * thing.size_bytes
        total += len(new) * thing.size_bytes
    return moved / total if total else 0.0

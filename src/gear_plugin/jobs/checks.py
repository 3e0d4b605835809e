"""
A manager's checks: which nodes answer, told to the roster.

In each round every node is asked, many at once.  One that answers is live.
One that has failed ROW times in a row is dead, unless another manager has
reported since the row began that it saw the node: then the row begins anew,
so that each row needs a new report and a manager that died vouches for nobody.
Rounds of reports are compared with rounds of the same manager only; no clock
of another machine is read.

`Checks` is used by one thread; *ask* is called by several.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from gear_plugin.catalog import Report, Roster
from gear_plugin.cluster import Member, Members
from gear_plugin.errors import GearError

log = logging.getLogger(__name__)

ROW = 3
"""Failures in a row that make a node dead."""
_WORKERS = 32
_STALL_S = 15.0
"""Longer than an ask of a node that is merely dead."""

Ask = Callable[[Member], None]
"""Returns when the node has answered as itself; raises GearError if it has not in some seconds."""
Observe = Callable[[float, bool], None]
"""Told of each ask: how long it took, seconds, and whether the node answered."""


@dataclass(slots=True)
class _Row:
    """Failures of one node, one after another."""

    address: str
    rounds: dict[str, int]
    """Of the other managers' reports, when the row began."""
    failures: int = 0


class Checks:
    """
    The checks of the manager *manager* (32 hex digits, the same after a restart).

    *changed* is given the nodes after each round.
    """

    def __init__(
        self,
        roster: Roster,
        manager: str,
        ask: Ask,
        *,
        changed: Callable[[Members], None] = lambda _: None,
        observe: Observe = lambda _time, _ok: None,
        workers: int = _WORKERS,
        stall_s: float = _STALL_S,
    ) -> None:
        self._roster = roster
        self._manager = manager
        self._ask = ask
        self._changed = changed
        self._observe = observe
        self._stall_s = stall_s
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="check")
        self._rows: dict[str, _Row] = {}
        self._hanging: dict[str, Future[bool]] = {}

    def run(self, stopped: threading.Event, every_s: float) -> None:
        """A round *every_s* until *stopped*; whatever fails, the next round is tried."""
        is_failing = False
        while not stopped.is_set():
            begun_s = time.monotonic()
            try:
                self.round()
            except GearError as error:
                if not is_failing:
                    log.warning("the nodes cannot be checked: %s", error)
                is_failing = True
            except Exception:
                log.exception("internal error: the nodes cannot be checked")
            else:
                is_failing = False
            stopped.wait(max(0.0, begun_s + every_s - time.monotonic()))
        self._pool.shutdown(wait=False, cancel_futures=True)

    def round(self) -> Members:
        """Ask every node once, report it, and give the nodes then; raises what the roster does."""
        members = self._roster.members()
        seen = self._seen(members)
        self._roster.report(self._manager, seen)
        changes = self._judge(members, seen)
        if changes:
            members = self._roster.set_live(changes)
        self._changed(members)
        return members

    def _seen(self, members: Members) -> frozenset[str]:
        """The nodes that answer."""
        self._hanging = {
            node: future for node, future in self._hanging.items() if not future.done()
        }
        # Those that are likely to answer come first.
        asked = sorted(members.nodes, key=lambda member: not member.is_live)
        futures = {
            self._pool.submit(self._answers, member): member.node
            for member in asked
            if member.node not in self._hanging
        }
        seen = set()
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=self._stall_s, return_when=FIRST_COMPLETED)
            seen |= {futures[future] for future in done if future.result()}
            if not done:
                break
        for future in waiting:
            if not future.cancel():
                # Asked again when this has ended: a node costs one thread at most.
                self._hanging[futures[future]] = future
        return frozenset(seen)

    def _answers(self, member: Member) -> bool:
        begun_s = time.monotonic()
        try:
            self._ask(member)
        except GearError as error:
            log.debug("node %s at %s: %s", member.node, member.address, error)
            is_seen = False
        else:
            is_seen = True
        self._observe(time.monotonic() - begun_s, is_seen)
        return is_seen

    def _judge(self, members: Members, seen: frozenset[str]) -> dict[str, bool]:
        """Who is live, or dead, from now on."""
        changes: dict[str, bool] = {}
        others: Mapping[str, Report] | None = None
        rows: dict[str, _Row] = {}
        for member in members.nodes:
            if member.node in seen:
                if not member.is_live:
                    log.info("node %s at %s answers", member.node, member.address)
                    changes[member.node] = True
            elif member.is_live:
                others = others if others is not None else self._others()
                row = self._row_of(member, others)
                row.failures += 1
                if row.failures < ROW:
                    rows[member.node] = row
                elif not _is_vouched_for(member.node, row, others):
                    log.warning("node %s at %s does not answer", member.node, member.address)
                    changes[member.node] = False
        # Rows of nodes that answered, left or are dead are over; dead ones begin anew
        # when they have joined again.
        self._rows = rows
        return changes

    def _row_of(self, member: Member, others: Mapping[str, Report]) -> _Row:
        row = self._rows.get(member.node)
        if row is not None and row.address == member.address:
            return row
        return _Row(member.address, {manager: report.round for manager, report in others.items()})

    def _others(self) -> Mapping[str, Report]:
        reports = self._roster.reports()
        reports.pop(self._manager, None)
        return reports


def _is_vouched_for(node: str, row: _Row, others: Mapping[str, Report]) -> bool:
    """Whether another manager has seen *node* since the row began."""
    return any(
        node in report.seen and report.round > row.rounds.get(manager, 0)
        for manager, report in others.items()
    )

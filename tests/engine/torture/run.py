"""
One torture run: workers and killers side by side, then the verdict.
"""

from __future__ import annotations

import queue
import random
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.engine.aftermath import Aftermath
from tests.engine.conftest import WORK
from tests.engine.small_images import SmallImages
from tests.engine.torture.killers import Killers
from tests.engine.torture.verdict import Verdict
from tests.engine.torture.workload import Findings, Unexplained, Worker
from tests.engine.world import Node


@dataclass(frozen=True)
class Plan:
    """How much: *parallel* workers share the work; *pause_s* is the mean time between kills."""

    lifecycles: int
    applies: int
    pulls: int
    parallel: int
    pause_s: float
    limit_s: float
    """No new work is begun after this."""


def torture(
    node: Node, images: SmallImages, extra: SmallImages, plan: Plan, seed: int
) -> tuple[str, bool]:
    """The report, and whether nothing was found.  The engine is stopped afterwards."""
    begun = time.monotonic()
    chance = random.Random(seed)
    findings = Findings()
    killers = Killers(node, random.Random(chance.random()), plan.pause_s)
    verdict = Verdict(node, images, killers, findings)
    before = Aftermath(node).layers()
    work = ["lifecycle"] * plan.lifecycles + ["apply"] * plan.applies + ["pull"] * plan.pulls
    chance.shuffle(work)
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for item in work:
        todo.put(item)
    scratch = Path(tempfile.mkdtemp(prefix="gear-torture-"))

    def labour(worker: Worker, own: random.Random) -> None:
        made: list[str] = []
        while time.monotonic() - begun < plan.limit_s:
            try:
                item = todo.get_nowait()
            except queue.Empty:
                if killers.had_everybody:
                    break
                item = "lifecycle"
            try:
                if item == "lifecycle":
                    worker.lifecycle()
                elif item == "pull":
                    worker.pull()
                else:
                    made.append(worker.apply())
                    if own.random() < 0.6:
                        worker.remove(made.pop(own.randrange(len(made))))
            except Unexplained as error:
                findings.add(str(error))
            except Exception as error:
                findings.add(f"in the test itself: {type(error).__name__}: {error}")

    threads = []
    for number in range(plan.parallel):
        own = random.Random(chance.random())
        worker = Worker(node, images, extra, killers, findings, own, scratch, number)
        threads.append(threading.Thread(target=labour, args=(worker, own)))
    killers.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    killers.stop()
    if todo.qsize():
        findings.count("items not begun in time", todo.qsize())
    for step in (
        verdict.settle,
        verdict.images_verify,
        verdict.objects_verify,
        verdict.df_is_consistent,
        lambda: verdict.nothing_leaks(before),
        verdict.nothing_outlives_the_engine,
        verdict.logs,
    ):
        try:
            step()
        except Exception as error:
            findings.add(f"verdict: {type(error).__name__}: {error}")
    shutil.rmtree(scratch)
    found = bool(findings.lines or killers.failures)
    if found:
        shutil.copy(node.engine.workdir / "dockerd.log", WORK / f"torture-{seed}.log")
    return verdict.report(seed, time.monotonic() - begun), not found

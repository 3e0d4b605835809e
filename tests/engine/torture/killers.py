"""
Who is killed when, always with kill -9: the plugin as a whole, its driver, its client,
its FUSE daemon, and dockerd, which is started again.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.engine.world import Node
from tests.waiting import eventually

RECOVERY_S = 25.0
"""For this long after a kill, and after whatever it broke was back, a call may fail."""
_VICTIMS = 5


@dataclass
class Killers:
    """
    One thread that kills: everybody once, in random order, and then whom it likes.
    *pause_s* is the mean time between two kills.
    """

    node: Node
    chance: random.Random
    pause_s: float
    kills: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _moments: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to kill."""
        self._thread = threading.Thread(target=self._run, name="killer")
        self._thread.start()

    def stop(self) -> None:
        """Stop, with everything running again."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join(120)
        assert not self._thread.is_alive(), "the killer itself hangs"

    @property
    def had_everybody(self) -> bool:
        """Whether each has been killed, or the killer has given up."""
        return len(self.kills) == _VICTIMS or bool(self.failures)

    def near(self, started: float) -> bool:
        """Whether a call that began at *started* and failed now may blame a kill."""
        return any(moment > started - RECOVERY_S for moment in list(self._moments))

    def _run(self) -> None:
        steps: dict[str, Callable[[], None]] = {
            "client": self._part("client"),
            "fuse": self._part("run-fuse"),
            "driver": self._part("run-api"),
            "plugin": self._plugin,
            "dockerd": self._engine,
        }
        first = self.chance.sample(list(steps), _VICTIMS)
        while not self._stop.wait(self.chance.expovariate(1 / self.pause_s)):
            name = first.pop() if first else self.chance.choice(list(steps))
            try:
                self._moments.append(time.monotonic())
                steps[name]()
                self._moments.append(time.monotonic())
                self.kills[name] += 1
            except Exception as error:
                self.failures.append(f"after the kill of {name}: {type(error).__name__}: {error}")
                return

    def _part(self, word: str) -> Callable[[], None]:
        def kill() -> None:
            process = self.node.process(word)
            if process:
                _kill(process)

        return kill

    def _plugin(self) -> None:
        """Its first process; see Node.kill_plugin for what dockerd makes of a second kill."""
        eventually(lambda: self.node.process("graphdriver"), what="a plugin to kill")
        killed = self.node.kill_plugin()
        self._moments.append(time.monotonic())
        eventually(lambda: self.node.process("graphdriver") not in (0, killed), what="the next")

    def _engine(self) -> None:
        """dockerd alone, and after a moment the next one, which finds what runs."""
        self.node.engine.kill()
        self._stop.wait(self.chance.random() * 2)
        self.node.engine.start_again("gear", wait_s=90)


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return

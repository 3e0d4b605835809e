"""The driver killed while layers come, are mounted, and go."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from gear_plugin.rootfs import mounts
from tests.faults.conftest import MakeNode, contents
from tests.faults.node import DriverError, Node

pytestmark = pytest.mark.root

THREADS, KILLS = 4, 3


class Lives:
    """Threads that make containers, write to them, mount them again and remove them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stop = threading.Event()
        self.failures: list[str] = []
        self.lived = 0
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(THREADS)]

    def __enter__(self) -> Lives:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
        assert not any(thread.is_alive() for thread in self._threads), "a call hangs"

    def _run(self, number: int) -> None:
        try:
            while not self._stop.is_set():
                self._live(f"c{number}-{self.lived}")
                self.lived += 1
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}")

    def _live(self, name: str) -> None:
        node, mine = self._node, os.urandom(2000)
        try:
            node.call("CreateReadWrite", ID=name, Parent="index")
        except DriverError as error:
            # Repeated: the driver was killed after it and before its answer.
            assert error.args[0] == 409, error
        tree = Path(node.call("Get", ID=name, MountLabel="")["Dir"])
        (tree / "mine").write_bytes(mine)
        node.call("Put", ID=name)
        tree = Path(node.call("Get", ID=name, MountLabel="")["Dir"])
        assert (tree / "mine").read_bytes() == mine
        assert (tree / "f000").read_bytes() == node.files["f000"]
        node.call("Put", ID=name)
        node.call("Remove", ID=name)


def test_a_driver_killed_at_any_moment_loses_and_leaves_nothing(make_node: MakeNode) -> None:
    """
    What was written is there at the next mount; no mount, no layer, no note stays.
    """
    node = make_node(contents(3))
    node.start()
    node.pull()
    kept = node.container("kept")
    (kept / "mine").write_bytes(b"kept")
    chance = random.Random(4)
    with Lives(node) as lives:
        for _ in range(KILLS):
            node.await_driver()
            threading.Event().wait(0.3 + chance.random())
            node.kill("api")
            assert (kept / "mine").read_bytes() == b"kept"
        node.await_driver()
    assert lives.failures == []
    assert lives.lived > KILLS
    node.call("Put", ID="kept")
    points = {point for point, _ in mounts() if node.root in point.parents}
    assert points <= {node.run / "index" / node.image.hex}
    assert sorted(os.listdir(node.root / "containers")) == ["index", "kept"]
    assert not (node.root / "containers/kept/held").exists()
    node.call("Remove", ID="kept")
    node.call("Remove", ID="index")
    assert os.listdir(node.root / "images") == []
    assert not node.said("Traceback|internal error|a bug")

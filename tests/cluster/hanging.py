"""The cluster's store behind a filesystem that can be told to hang."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gear_plugin.rootfs import unmount
from tests.cluster.fleet import Fleet
from tests.faults import hanging_fs


class HangingStore:
    """While the file `hang` exists nothing that reads the store is answered."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def hang(self) -> None:
        """From now on."""
        self._mark.touch()

    def resume(self) -> None:
        """All go on."""
        self._mark.unlink(missing_ok=True)


@contextlib.contextmanager
def hanging_store(fleet: Fleet) -> Iterator[HangingStore]:
    """Nodes and manager restarted on such a store, and back on the real one afterwards."""
    folder = fleet.store.parent / "hanging"
    folder.mkdir(exist_ok=True)
    mark = fleet.store.parent / "hang"
    store = HangingStore(mark)
    command = [sys.executable, hanging_fs.__file__, str(fleet.store), str(folder), str(mark)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for node in fleet.nodes:
            node.stop()
            node.settings(store=folder)
        _move_manager(fleet, folder)
        yield store
    finally:
        store.resume()
        for node in fleet.nodes:
            node.stop()
            node.forget_setting("store")
        _move_manager(fleet, fleet.store)
        unmount(folder, lazy=True)
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def _move_manager(fleet: Fleet, store: Path) -> None:
    fleet.kill_manager()
    fleet.managers_store = store
    fleet.start_manager()

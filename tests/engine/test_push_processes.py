"""Real `gear push` processes: killed, many at once, and with a store or an etcd that hangs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gear_plugin.names import ImageId
from tests.etcd_server import EtcdServer
from tests.unit.jobs.pushing import Machine, done, failed, files, wait_until

ONE, TWO = ImageId.parse("registry.example/app:1"), ImageId.parse("registry.example/app:2")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """With SQLite."""
    with Machine(tmp_path, f"sqlite://{tmp_path}/catalog.sqlite").served() as made:
        yield made


@pytest.fixture
def clustered(tmp_path: Path, etcd_url: str) -> Iterator[Machine]:
    """With etcd."""
    with Machine(tmp_path, etcd_url).served() as made:
        yield made


OBJECTS = 300
WINDOWS: dict[str, Callable[[Machine], object]] = {
    "at the start": lambda machine: True,
    "first object": lambda machine: machine.stored() > 0,
    "half the objects": lambda machine: machine.stored() > OBJECTS / 2,
    "all objects": lambda machine: machine.stored() == OBJECTS,
    "at the registry": lambda machine: machine.engine.is_asked.is_set(),
}


def kill_and_push_again(machine: Machine, window: str) -> None:
    machine.build(ONE, files("one", OBJECTS))
    machine.engine.may_answer.clear()
    process = machine.start(ONE)
    wait_until(lambda: WINDOWS[window](machine), process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = machine.stored()
    if machine.is_recorded(ONE):
        assert before == OBJECTS
    for path in machine.store.glob("incoming/*"):
        os.utime(path, (0, 0))  # as if a day had gone by
    result = machine.push(ONE)
    assert (result.objects, result.new_objects) == (OBJECTS, OBJECTS - before)
    machine.check(ONE)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_killed_push_is_completed_by_the_next(machine: Machine, window: str) -> None:
    """
    kill -9 at any moment: no record without its objects, and the next push does the rest.
    """
    kill_and_push_again(machine, window)


@pytest.mark.parametrize("window", ["all objects", "at the registry"])
def test_a_killed_push_to_etcd_is_completed_by_the_next(clustered: Machine, window: str) -> None:
    """
    The same; every window of the catalog alone: tests/unit/catalog/test_etcd.py.
    """
    kill_and_push_again(clustered, window)


def push_at_once(machine: Machine) -> None:
    common = files("common", 200)
    machine.build(ONE, {**common, **files("one", 50)})
    machine.build(TWO, {**common, **files("two", 50)})
    results = [done(push) for push in [machine.start(image) for image in (ONE, TWO, ONE)]]
    assert sum(result["new_objects"] for result in results) == 300
    for result in results:
        assert result["new_bytes"] + result["saved_bytes"] == result["object_bytes"]
    assert machine.stored() == 300
    machine.check(ONE, TWO)


def test_pushers_at_once_store_each_object_once(machine: Machine) -> None:
    """
    Three processes, two images with most files in common, one store, one catalog.
    """
    push_at_once(machine)


def test_pushers_at_once_to_etcd_store_each_object_once(clustered: Machine) -> None:
    """
    The same.
    """
    push_at_once(clustered)


class Share:
    """A FUSE filesystem that can be told to hang, as a share does whose server is gone."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "share"
        self._behind = folder / "behind"
        self.path.mkdir()
        self._behind.mkdir()
        words = ("bindfs", "-f", "-o", "attr_timeout=0,entry_timeout=0")
        self._daemon = subprocess.Popen([*words, str(self._behind), str(self.path)])
        wait_for_mount(self.path)

    def hang(self) -> None:
        self._daemon.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._daemon.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.go_on()
        subprocess.run(["umount", "-l", str(self.path)], check=True)
        self._daemon.terminate()
        self._daemon.wait(20)


def wait_for_mount(path: Path) -> None:
    deadline_s = time.monotonic() + 30
    while not os.path.ismount(path):
        assert time.monotonic() < deadline_s, "bindfs did not mount"
        time.sleep(0.02)


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    made = Share(tmp_path)
    yield made
    made.close()


@pytest.fixture
def on_share(tmp_path: Path, share: Share) -> Iterator[Machine]:
    """With its store on the share."""
    with Machine(tmp_path, f"sqlite://{tmp_path}/catalog.sqlite").served() as made:
        made.store = share.path / "store"
        yield made


@pytest.mark.root
def test_a_store_that_hangs_is_given_up(on_share: Machine, share: Share) -> None:
    """
    After the limit, in one line; when it answers again, so does the push.
    """
    on_share.build(ONE, files("one", 30))
    on_share.push(ONE)
    share.hang()
    message = failed(on_share.start(ONE, push_stall_s=1), 7)
    assert message == (
        f"gear: store {on_share.store} has not moved for 1 s; try again when it answers"
    )
    share.go_on()
    on_share.push(ONE)
    on_share.check(ONE)


@pytest.mark.root
def test_a_hanging_store_can_be_interrupted(on_share: Machine, share: Share) -> None:
    """
    The user is told what is waited for, and Ctrl-C ends it.
    """
    on_share.build(ONE, files("one", 30))
    on_share.push(ONE)
    share.hang()
    process = on_share.start(ONE, push_stall_s=12)
    assert process.stderr is not None
    line = process.stderr.readline()
    said = rf"waiting for store {on_share.store}: nothing for \d+ s, given up after 12 s\n"
    assert re.fullmatch(said, line)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.root
def test_a_store_that_hangs_in_the_middle(on_share: Machine, share: Share) -> None:
    """
    Nothing is recorded; the next push completes it.
    """
    on_share.build(ONE, files("one", 1000))
    process = on_share.start(ONE, push_stall_s=1)
    assert process.stderr is not None
    wait_until(lambda: on_share.stored() > 50, process)
    share.hang()
    # Its threads cannot end now, and hold these pipes; the command does end.
    assert process.wait(60) == 7
    line = next(line for line in process.stderr if line.startswith("gear: "))
    assert line == (
        f"gear: store {on_share.store} has not moved for 1 s; try again when it answers\n"
    )
    share.go_on()
    process.communicate(timeout=60)
    assert not on_share.is_recorded(ONE)
    assert on_share.fake.pushed == []
    on_share.push(ONE)


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_an_etcd_that_dies_meanwhile(tmp_path: Path, how: str) -> None:
    """
    Down, or there and silent: the index is not pushed, and the next push completes it.
    """
    server = EtcdServer(tmp_path / "etcd")
    server.start()
    try:
        with Machine(tmp_path, f"etcd://127.0.0.1:{server.port}").served() as machine:
            machine.build(ONE, files("one", OBJECTS))
            process = machine.start(ONE, catalog_timeout_s=2)
            wait_until(lambda: machine.stored() > 0, process)
            getattr(server, how)()
            assert f"etcd at 127.0.0.1:{server.port}" in failed(process, 7).replace(
                "no etcd answers at", "etcd at"
            )
            assert machine.fake.pushed == []
            if how == "kill":
                server.start()
            else:
                server.resume()
            assert machine.push(ONE).new_objects == 0
            machine.check(ONE)
    finally:
        server.stop()


def test_a_registry_that_does_not_answer_can_be_interrupted(machine: Machine) -> None:
    """
    Ctrl-C; the engine has limits of its own for a registry.
    """
    machine.build(ONE, files("one", 3))
    machine.engine.may_answer.clear()
    process = machine.start(ONE)
    wait_until(machine.engine.is_asked.is_set, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130

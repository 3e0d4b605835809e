"""The node's processes killed at any moment, while a container opens files."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import MakeNode, contents
from tests.faults.node import Node
from tests.unit.layers.tars import tar
from tests.waiting import eventually

pytestmark = pytest.mark.root

THREADS = 8


class Readers:
    """Threads that open random files of a tree until told to stop; they check every byte."""

    def __init__(self, tree: Path, files: dict[str, bytes], rounds: int) -> None:
        self._tree, self._files = tree, files
        self._step = len(files) // rounds
        self._names = sorted(files)[: self._step]
        self.wrong: list[str] = []
        self.outcomes: Counter[int] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(THREADS)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a reader hangs"

    def more(self) -> None:
        """From now on read files that nobody has opened yet, besides the others."""
        self._names = sorted(self._files)[: len(self._names) + self._step]

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._stop.is_set():
            name = chance.choice(self._names)
            try:
                content = (self._tree / name).read_bytes()
            except OSError as error:
                self.outcomes[error.errno or -1] += 1
                self._stop.wait(0.01)
            else:
                self.outcomes[0] += 1
                if content != self._files[name]:
                    self.wrong.append(name)


def assert_sound(node: Node) -> None:
    """Each public object is whole; each private link is of a public object; nothing on its way."""
    public = {path.parent.name + path.name: path for path in (node.root / "public").glob("*/*")}
    for name, path in public.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name
    for path in (node.root / "private").glob("*/*/*"):
        assert path.samefile(public[path.parent.name + path.name])
    assert os.listdir(node.root / "cache-incoming") == []


def all_read(node: Node, tree: Path) -> bool:
    """Whether every file reads right; wrong content fails the test."""
    for name, content in node.files.items():
        try:
            assert (tree / name).read_bytes() == content
        except OSError:
            return False
    return True


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    node = make_node(contents(240))
    node.start()
    node.pull()
    return node


def test_a_client_killed_at_any_moment(node: Node) -> None:
    """
    Five times, while eight threads open missing files: no wrong byte, no
    hang, and with a client that comes back within seconds not one error.
    """
    tree = node.container()
    chance = random.Random(1)
    with Readers(tree, node.files, 6) as readers:
        for _ in range(5):
            node.await_client()
            readers.more()
            threading.Event().wait(chance.random() / 5)
            node.kill("client")
        node.await_client()
    assert readers.wrong == []
    assert set(readers.outcomes) <= {0, errno.EIO}
    assert readers.outcomes[0] > 100
    node.kill("client")  # a new one has swept up by the time it answers
    node.await_client()
    assert all_read(node, tree)
    assert_sound(node)
    assert not node.said("Traceback|internal error|a bug")


def test_a_fuse_daemon_killed_at_any_moment(node: Node) -> None:
    """
    The container keeps the mount of a daemon that is gone: what it misses
    fails until the cache is filled, and then the same container reads it.
    """
    tree = node.container()
    chance = random.Random(2)
    with Readers(tree, node.files, 4) as readers:
        for _ in range(3):
            readers.more()
            eventually((node.run / "fuse.json").exists, "the daemon serves")
            threading.Event().wait(chance.random() / 5)
            node.kill("fuse")
        eventually(lambda: all_read(node, tree), "the old container is healed")
    assert readers.wrong == []
    assert set(readers.outcomes) <= {0, errno.EIO, errno.ENOTCONN, errno.ECONNABORTED}
    node.call("CreateReadWrite", ID="next", Parent="index")
    following = Path(node.call("Get", ID="next", MountLabel="")["Dir"])
    assert all_read(node, following)
    assert_sound(node)
    assert not node.said("Traceback|internal error|a bug")


def test_everything_killed_at_once(node: Node) -> None:
    """
    All three processes, a few times; the container itself never goes away.
    """
    tree = node.container()
    chance = random.Random(3)
    with Readers(tree, node.files, 4) as readers:
        for _ in range(3):
            readers.more()
            node.await_client()
            threading.Event().wait(chance.random() / 3)
            for part in chance.sample(("client", "fuse", "api"), 3):
                node.kill(part)
        node.await_client()
        eventually(lambda: all_read(node, tree), "the old container is healed")
    assert readers.wrong == []
    node.await_driver()
    # The new api finds the mount and counts it once.
    node.call("Put", ID="container")
    node.call("Remove", ID="container")
    assert_sound(node)


@pytest.mark.parametrize("what", ["index", "ordinary layer"])
def test_the_driver_killed_while_it_applies(node: Node, what: str) -> None:
    """
    At six moments of a pull: the next start leaves no half-made layer and no
    image that no layer carries, and the same pull works then.
    """
    files = ({"name": f"d/{n}", "data": os.urandom(2000)} for n in range(300))
    data = None if what == "index" else tar(*files)
    node.call("Remove", ID="index")
    for number in range(6):
        name = f"pull{number}"
        pull = threading.Thread(target=_try, args=(lambda name=name: node.pull(data, name),))
        pull.start()
        threading.Event().wait(0.05 + 0.06 * number)
        node.kill("api")
        pull.join(60)
        node.await_driver()
        assert not list((node.root / "containers").glob("*/applying"))
        for layer in os.listdir(node.root / "containers"):
            node.call("Remove", ID=layer)
        assert os.listdir(node.root / "containers") == []
        assert os.listdir(node.root / "images") == []
    node.pull(data, "last")
    if what == "index":
        node.call("CreateReadWrite", ID="container", Parent="last")
        assert all_read(node, Path(node.call("Get", ID="container", MountLabel="")["Dir"]))


def _try(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        return

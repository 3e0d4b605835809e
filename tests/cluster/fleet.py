"""
A cluster on one machine, from real parts but docker: etcd, managers, and nodes
that each run all of Gear's processes in a network namespace of their own.

The store is a directory that the manager names; it lies on a filesystem of its
own, so that the kernel can count who reads it.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gear_plugin.cluster import Member, Members, route
from gear_plugin.content import DirectoryStore
from gear_plugin.digest import Digest
from gear_plugin.image import Inode, Kind, Tree
from tests.cluster.network import Network, address, netns
from tests.cluster.reads import own_filesystem
from tests.engine.netns import inside
from tests.etcd_server import EtcdServer
from tests.faults.node import Node
from tests.unit.image.indexes import index
from tests.unit.layers.layer_damage import whole
from tests.waiting import eventually

MANAGER_PORT, NODE_PORT = 2019, 2020
_START_S = 60.0
_SETNS_NET = 0x40000000

_T = TypeVar("_T")


class Image:
    """A Gear image of *files*, each under its name in the root."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        tree = Tree()
        for name, content in files.items():
            tree.root.children[name.encode()] = Inode(
                *(Kind.FILE, 0o644, 0, 0, 0), size=len(content), digest=Digest.of(content)
            )
        self.erofs, self.manifest = index(tree, chunks={}, profile=())
        self.layer = whole(self.erofs, self.manifest)
        self.name = Digest.of(self.erofs).hex

    @classmethod
    def random(cls, seed: object, count: int = 20, size_bytes: int = 20_000) -> Image:
        """One whose files no other image has."""
        chance = random.Random(str(seed))
        return cls({f"f{number:03}": chance.randbytes(size_bytes) for number in range(count)})

    def digests(self) -> set[str]:
        """The objects, hex."""
        return {Digest.of(content).hex for content in self.files.values()}


class ClusterNode(Node):
    """Node *number*: joins the manager that *settings* name; its store is the cluster's."""

    def __init__(self, base: Path, number: int, store: Path, **settings: object) -> None:
        super().__init__(base, {}, store=store, netns=netns(number), **settings)
        self.number = number
        self.forget_setting("store")  # the manager says where it is

    @property
    def address(self) -> str:
        """Where others reach it."""
        return f"{address(self.number)}:{NODE_PORT}"

    def node_id(self) -> str:
        """Its id in the cluster."""
        return (self.root / "node-id").read_text().strip()

    def tree(self, image: Image) -> Path:
        """A container's view of *image*, which is pulled if it was not."""
        name = image.name[:32]
        if not self.call("Exists", ID=name)["Exists"]:
            self.pull(image.layer, name)
        container = f"{name}-{len(list((self.root / 'containers').iterdir()))}"
        self.call("CreateReadWrite", ID=container, Parent=name)
        return Path(self.call("Get", ID=container, MountLabel="")["Dir"])

    def cached(self, digest: str) -> Path:
        """Where its public cache has an object, if it has it."""
        return self.root / "public" / Digest.from_hex(digest).shard_path

    def part(self, word: str) -> list[int]:
        """The processes of this node whose command line has *word*."""
        found = []
        for pid in _run("ip", "netns", "pids", self.netns).split():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if word.encode() in words:
                found.append(int(pid))
        return found

    def kill_network_side(self) -> None:
        """kill -9 of all that answers other nodes: the client and its port."""
        for pid in (*self.part("client"), *self.part("run-port")):
            os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Fleet:
    """
    The cluster below *base* with the nodes *numbers*; `node_settings` go to each.

    Used as a context manager: all is up when the block begins and gone at its end.
    """

    def __init__(self, base: Path, numbers: Sequence[int], **node_settings: object) -> None:
        self._base = base
        self.managers_store = base / "store"
        """The store as managers find it, from their next start on."""
        self._settings = node_settings
        self.network = Network(max(numbers))
        self.store = base / "store"
        self.etcd = EtcdServer(base / "etcd", netns=netns(0), host=address(0))
        self._managers: dict[int, subprocess.Popen[bytes]] = {}
        self.nodes = [self.make_node(number) for number in numbers]
        self._stack = ExitStack()

    def make_node(self, number: int, **settings: object) -> ClusterNode:
        """Node *number*, not started; the settings beat the fleet's."""
        given = {
            "manager": address(0),
            "catalog_timeout_s": 3,
            "fetch_stall_s": 4,
            "fetch_timeout_s": 10,
            "hedge_s": 0.5,
            **self._settings,
            **settings,
        }
        return ClusterNode(self._base / f"n{number}", number, self.store, **given)

    def __enter__(self) -> Fleet:
        with ExitStack() as stack:
            stack.enter_context(own_filesystem(self.store))
            self.objects = DirectoryStore.create(self.store)
            stack.callback(self.network.stop)
            self.network.start()
            stack.callback(self.etcd.stop)
            self.etcd.start()
            stack.callback(self.stop_managers)
            self.start_manager()
            self.token = self.gear("token").stdout.strip()
            for node in self.nodes:
                stack.callback(node.close)
            self.start_nodes()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_nodes(self) -> None:
        """Start those that do not run, and wait until all have joined."""
        starting = [node for node in self.nodes if not node.is_running]
        for node in starting:
            node.settings(token=self.token)
        with ThreadPoolExecutor(len(self.nodes)) as workers:
            for done in [workers.submit(node.start) for node in starting]:
                done.result()
        # The list may not have missed those that were away for a moment.
        for node in starting:
            self.await_port(node)
        self.await_live(*self.nodes)
        eventually(lambda: all(map(self._knows, self.nodes)), "they know each other", timeout_s=60)

    def await_port(self, node: ClusterNode) -> None:
        """Wait until others are served by *node*, which a start does not wait for."""
        eventually(lambda: self._is_up(NODE_PORT, node.number), "its port answers")

    def _knows(self, node: ClusterNode) -> bool:
        """Whether *node* takes all for live, as it must have heard after a restart."""
        found = json.loads((node.root / "cluster.json").read_bytes())
        live = {one["address"] for one in found["nodes"] if one["is_live"]}
        return live >= {one.address for one in self.nodes}

    # --- managers -------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """The settings of what runs on the manager's machine."""
        root = self._base / "manager"
        root.mkdir(parents=True, exist_ok=True)
        values = {
            "root": root,
            "store": self.managers_store,
            "catalog": f"etcd://{address(0)}:{self.etcd.port}",
            "catalog_timeout_s": 5,
            "check_s": 0.5,
        }
        return {**os.environ, **{f"GEAR_{key.upper()}": str(v) for key, v in values.items()}}

    def gear(
        self, *words: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `gear WORDS...` on the manager's machine, with *environ* added to the settings."""
        return _gear(0, words, {**self.environment(), **(environ or {})})

    def gear_elsewhere(self, number: int, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `gear WORDS...` on a machine beside node *number* that knows the manager alone."""
        values = {"ROOT": self._base / f"elsewhere-{number}", "MANAGER": address(0)}
        values |= {"RUN": self._base / "nowhere", "TOKEN": self.token}
        return _gear(number, words, {**os.environ, **{f"GEAR_{k}": str(values[k]) for k in values}})

    def start_manager(self, port: int = MANAGER_PORT) -> None:
        """Start a manager, and wait until it answers."""
        command = [sys.executable, "-m", "gear_plugin", "manager", "--listen", f"0.0.0.0:{port}"]
        with (self._base / f"manager-{port}.log").open("ab") as log:
            self._managers[port] = subprocess.Popen(
                inside(netns(0), command), env=self.environment(), stdout=log, stderr=log
            )
        eventually(lambda: self._is_up(port), "the manager answers", timeout_s=_START_S)

    def kill_manager(self, port: int = MANAGER_PORT) -> None:
        """kill -9 of a manager and its worker."""
        process = self._managers.pop(port)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        process.wait()

    def stop_managers(self) -> None:
        """SIGTERM, and wait."""
        for process in self._managers.values():
            process.terminate()
        for process in self._managers.values():
            process.wait(30)
        self._managers.clear()

    def _is_up(self, port: int, number: int = 0) -> bool:
        try:
            return self.ask("GET", "/healthz", number=number, port=port, token="").status == 200
        except OSError:
            return False

    # --- asking ---------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        number: int = 0,
        port: int = MANAGER_PORT,
        token: str | None = None,
        timeout_s: float = 60.0,
    ) -> Answer:
        """One request to the manager, or to the node *number*, from the manager's machine."""
        given = self.token if token is None else token
        headers = {"Authorization": f"Bearer {given}"} if given else {}

        def talk() -> Answer:
            at = NODE_PORT if number else port
            connection = http.client.HTTPConnection(address(number), at, timeout=timeout_s)
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                return Answer(answer.status, answer.read())
            finally:
                connection.close()

        return in_namespace(netns(0), talk)

    def members(self) -> dict[str, bool]:
        """Address to liveness, by the manager."""
        nodes = self.ask("GET", "/nodes").json()["nodes"]
        return {node["address"]: node["is_live"] for node in nodes}

    def await_live(self, *nodes: ClusterNode, live: bool = True) -> None:
        """Wait until the manager says so of each of *nodes*."""
        eventually(
            lambda: all(self.members().get(node.address) is live for node in nodes),
            f"{[node.address for node in nodes]} live={live}",
            timeout_s=_START_S,
        )

    # --- content --------------------------------------------------------------

    def publish(self, image: Image) -> None:
        """Put the objects of *image* into the store."""
        for content in image.files.values():
            file = self._base / "object"
            file.write_bytes(content)
            self.objects.put(Digest.of(content), file)

    def homes_of(self, digest: str) -> list[ClusterNode]:
        """The homes of an object, the first first."""
        found = self._by_id()
        return [found[home.node] for home in self._list().homes(Digest.from_hex(digest))]

    def asked_first(self, asker: ClusterNode, digest: str) -> ClusterNode:
        """The home that *asker*, which is none itself, asks for the object before the other."""
        return self._by_id()[route(Digest.from_hex(digest), self._list(), asker.node_id())[0].node]

    def _by_id(self) -> dict[str, ClusterNode]:
        return {node.node_id(): node for node in self.nodes}

    def _list(self) -> Members:
        members = [Member(name, node.address) for name, node in self._by_id().items()]
        return Members(1, tuple(sorted(members)))


def _gear(
    number: int, words: Sequence[str], environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    command = inside(netns(number), [sys.executable, "-m", "gear_plugin", *words])
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def in_namespace(name: str, action: Callable[[], _T]) -> _T:
    """The result of *action*, done by a thread in the network namespace *name*."""
    outcome: list[tuple[_T | None, Exception | None]] = []

    def run() -> None:
        handle = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(handle, _SETNS_NET):
                raise OSError(ctypes.get_errno(), "setns")
            outcome.append((action(), None))
        except Exception as error:
            outcome.append((None, error))
        finally:
            os.close(handle)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    result, error = outcome[0]
    if error is not None:
        raise error
    assert result is not None
    return result


def _run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout

"""The client's socket, from both sides: LocalServer and LocalClient over a real one."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin import wire
from gear_plugin.api import local
from gear_plugin.api.local import LocalServer
from gear_plugin.content import Cache, Fetcher, LocalClient, MemoryStore
from gear_plugin.digest import Digest
from gear_plugin.errors import (
    BadDigest,
    BadRequest,
    Conflict,
    ContentNotFound,
    DaemonUnavailable,
    GearError,
    ImageNotFound,
    NotFound,
    TimedOut,
)
from tests.waiting import eventually

IMAGE = Digest.of(b"index")
HERE, ABSENT = Digest.of(b"here"), Digest.of(b"absent")


class Node:
    """A client process's collaborators, and its server in a thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "client.sock"
        self.cache = Cache(folder / "gear", 0)
        self.store = MemoryStore("store")
        (folder / "file").write_bytes(b"here")
        self.store.put(HERE, folder / "file")
        self.client = LocalClient(self.path, 5)
        self.start()

    def start(self) -> None:
        fetcher = Fetcher(self.cache, [self.store], stall_s=5, timeout_s=5, workers=4)
        self.server = LocalServer(self.path, fetcher, self.cache, lambda _image: [HERE])
        self.thread = threading.Thread(target=self.server.serve)
        self.thread.start()
        eventually(self.is_up)

    def is_up(self) -> bool:
        try:
            LocalClient(self.path, 5).status()
        except DaemonUnavailable:
            return False
        return True

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(5)
        assert not self.thread.is_alive()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.stop()


def test_socket_is_roots_alone(node: Node) -> None:
    """Mode 0600 from the moment it appears."""
    assert stat.S_IMODE(node.path.stat().st_mode) == 0o600
    assert [name for name in os.listdir(node.path.parent) if "sock" in name] == ["client.sock"]


def test_an_images_life(node: Node) -> None:
    """admit, fetch, forget: each does what it says, and again without harm."""
    for _ in range(2):
        node.client.admit(IMAGE)
    for _ in range(2):
        node.client.fetch(IMAGE, HERE)
    assert node.cache.path(HERE).stat().st_nlink == 2
    for _ in range(2):
        node.client.forget(IMAGE)
    assert node.cache.path(HERE).stat().st_nlink == 1


def test_complete_returns_at_once_and_brings_all(node: Node) -> None:
    """In the background."""
    node.client.admit(IMAGE)
    node.client.complete(IMAGE)
    eventually(lambda: node.cache.has(HERE))
    eventually(lambda: node.client.status()["completing"] == {})


def test_status_counts(node: Node) -> None:
    """What the cache holds, what was fetched from where, what is under way."""
    node.client.admit(IMAGE)
    node.client.fetch(IMAGE, HERE)
    status = node.client.status()
    assert status["cached"] == {"objects": 1, "size_bytes": 4096, "limit_bytes": 0}
    assert status["fetched"]["objects"] == 1
    assert status["fetched"]["sources"]["store"]["size_bytes"] == 4
    assert status["completing"] == {}


def test_errors_cross_as_themselves(node: Node) -> None:
    """The class and the line, and the connection lives on."""
    node.client.admit(IMAGE)
    with pytest.raises(ContentNotFound, match=ABSENT.hex):
        node.client.fetch(IMAGE, ABSENT)
    with pytest.raises(ImageNotFound):
        node.client.fetch(Digest.of(b"stranger"), HERE)
    node.client.fetch(IMAGE, HERE)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"nonsense", BadRequest),
        (b"[]", BadRequest),
        (b"{}", BadRequest),
        (b'{"op":"destroy"}', BadRequest),
        (b'{"op":"admit"}', BadRequest),
        (b'{"op":"admit","image":7}', BadRequest),
        (b'{"op":"admit","image":"../../etc"}', BadDigest),
        (b"\xff\xfe", BadRequest),
    ],
)
def test_bad_requests_are_refused(node: Node, line: bytes, error: type[GearError]) -> None:
    """Whatever was sent, the answer is one line that says what was wrong."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(node.path))
        raw.sendall(line + b"\n")
        answer = raw.makefile("rb").readline()
    with pytest.raises(error):
        wire.raise_failure(wire.decode(answer))


def test_requests_may_come_in_pieces_or_together(node: Node) -> None:
    """Lines count, not packets."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(node.path))
        raw.sendall(b'{"op":"sta')
        time.sleep(0.02)
        raw.sendall(b'tus"}\n{"op":"status"}\n')
        answers = raw.makefile("rb")
        assert all(wire.decode(answers.readline())["ok"] for _ in range(2))


def test_endless_line_is_cut_off(node: Node) -> None:
    """It cannot fill the client's memory."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(node.path))
        raw.settimeout(5)
        with pytest.raises(OSError):  # EPIPE or ECONNRESET
            while True:
                raw.sendall(b"x" * wire.MAX_LINE_BYTES)


def test_bug_is_logged_and_answered(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller hears "internal error", the log has the traceback."""

    def broken(_image: Digest) -> None:
        raise ZeroDivisionError("the bug")

    monkeypatch.setattr(node.cache, "admit", broken)
    with pytest.raises(GearError, match="internal error"):
        node.client.admit(IMAGE)
    assert "ZeroDivisionError: the bug" in caplog.text
    caplog.clear()


def test_callers_beyond_the_limit_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And take the places of those who leave."""
    monkeypatch.setattr(local, "_MAX_CONNECTIONS", 2)
    node = Node(tmp_path)
    try:
        eventually(lambda: node.server._slots._value == 2)
        first, second, third = (LocalClient(node.path, 5) for _ in range(3))
        first.status()
        second.status()
        with pytest.raises(DaemonUnavailable):
            third.status()
        first.close()
        eventually(lambda: node.server._slots._value == 1)
        third.status()
    finally:
        node.stop()


def test_client_follows_a_restart(node: Node) -> None:
    """A kept connection that the restart broke is opened again, unseen by the caller."""
    node.client.admit(IMAGE)
    node.stop()
    # In one process the server's threads live on; a real restart ends them.
    node.client._local.connection.socket.shutdown(socket.SHUT_RDWR)
    node.start()
    node.client.fetch(IMAGE, HERE)


def test_stopped_client_is_unavailable(tmp_path: Path) -> None:
    """No socket, or one that nobody listens on."""
    path = tmp_path / "client.sock"
    with pytest.raises(DaemonUnavailable, match="is it running"):
        LocalClient(path, 1).status()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(DaemonUnavailable, match="is it running"):
        LocalClient(path, 1).status()


def test_patient_caller_sits_out_a_restart(node: Node) -> None:
    """What a container waits for does not fail because the client is being started again."""
    node.client.admit(IMAGE)
    node.stop()
    fetched: list[bool] = []
    patient = LocalClient(node.path, 5, patience_s=30)

    def fetch() -> None:
        patient.fetch(IMAGE, HERE)
        fetched.append(True)

    thread = threading.Thread(target=fetch)
    thread.start()
    time.sleep(0.2)
    assert fetched == []
    node.start()
    thread.join(30)
    assert fetched == [True]


def test_patience_is_for_an_outage_not_for_each_call(tmp_path: Path) -> None:
    """While the client stays away, only the first calls wait for it."""
    patient = LocalClient(tmp_path / "client.sock", 5, patience_s=0.5)
    began = time.monotonic()
    for _ in range(40):
        with pytest.raises(DaemonUnavailable):
            patient.fetch(IMAGE, HERE)
    assert time.monotonic() - began < 40 * 0.5


def test_silent_client_times_out_and_its_late_answer_is_not_mistaken(tmp_path: Path) -> None:
    """The next request goes over a new connection; nobody hears the old one any more."""
    path = tmp_path / "client.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = LocalClient(path, 0.1)
        with pytest.raises(TimedOut, match=r"0\.1 s"):
            client.admit(IMAGE)
        late: list[str] = []

        def answer() -> None:
            first, _ = listener.accept()
            second, _ = listener.accept()
            with first, second:
                try:
                    first.sendall(wire.encode({"ok": False, "error": "Conflict", "message": ""}))
                except BrokenPipeError:
                    late.append("not heard")
                second.recv(1000)
                second.sendall(wire.encode({"ok": True}))

        thread = threading.Thread(target=answer)
        thread.start()
        client.admit(IMAGE)
        thread.join()
        assert late == ["not heard"]
        client.close()


def test_each_thread_has_its_own_connection(node: Node) -> None:
    """Answers of slow requests do not hold up or mix with others."""
    node.client.admit(IMAGE)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                node.client.fetch(IMAGE, HERE)
                with pytest.raises(ContentNotFound):
                    node.client.fetch(IMAGE, ABSENT)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_second_client_is_refused(node: Node) -> None:
    """Only one may write the caches of a node; the first goes on."""
    fetcher = Fetcher(node.cache, [], stall_s=1, timeout_s=1, workers=1)
    with pytest.raises(Conflict, match="another"):
        LocalServer(node.path, fetcher, node.cache, lambda _image: []).serve()
    node.client.status()


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    """What a killed client left does not hinder the next."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "client.sock"))
    node = Node(tmp_path)
    node.stop()


def test_stop_takes_the_socket_and_a_checkpoint(node: Node) -> None:
    """An orderly stop costs nothing at the next boot."""
    checkpoint = node.path.parent / "gear" / "cache-checkpoint"
    before = checkpoint.stat().st_ino
    node.stop()
    assert not node.path.exists()
    assert checkpoint.stat().st_ino != before
    with pytest.raises(DaemonUnavailable):
        LocalClient(node.path, 1).status()


def test_object_is_obtained_for_another_node(node: Node) -> None:
    """In the public cache, with one link; it fails as a fetch does."""
    node.client.obtain(HERE)
    node.client.obtain(HERE, 4)
    assert node.cache.path(HERE).stat().st_nlink == 1
    with pytest.raises(ContentNotFound):
        node.client.obtain(ABSENT)


@pytest.mark.parametrize("size", [-1, True, "4", 1.5])
def test_size_must_be_one(node: Node, size: object) -> None:
    """A whole number of bytes."""
    with pytest.raises(BadRequest, match="'size'"):
        node.client._ask({"op": "obtain", "object": HERE.hex, "size": size})


def test_node_on_its_own_is_in_no_cluster(node: Node) -> None:
    """Which is said so."""
    with pytest.raises(NotFound, match="no cluster"):
        node.client.cluster()
    with pytest.raises(NotFound, match="no cluster"):
        node.client.leave()


class Place:
    """A place in a cluster that notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def start(self) -> None:
        self.done.append("start")

    def stop(self) -> None:
        self.done.append("stop")

    def leave(self) -> None:
        self.done.append("leave")

    def status(self) -> dict[str, object]:
        return {"node": "n", "cluster": "c", "address": "a", "members": {"version": 1, "nodes": []}}


def test_place_in_the_cluster_lives_with_the_server(node: Node) -> None:
    """It joins when the socket is there, and can be asked and told to leave."""
    node.stop()
    place = Place()
    fetcher = Fetcher(node.cache, [], stall_s=1, timeout_s=1, workers=1)
    node.server = LocalServer(node.path, fetcher, node.cache, lambda _: [], cluster=place)
    node.thread = threading.Thread(target=node.server.serve)
    node.thread.start()
    eventually(node.is_up)
    client = LocalClient(node.path, 5)
    assert client.cluster() == place.status()
    client.leave()
    node.stop()
    assert place.done == ["start", "leave", "stop"]
    node.start()

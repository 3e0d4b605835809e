"""A node's place in the cluster, with a manager on a real port."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gear_plugin import __version__
from gear_plugin.cluster import Member, Settings, Token
from gear_plugin.content.calls import Calls
from gear_plugin.errors import AccessDenied, SourceUnavailable
from gear_plugin.jobs import joined as module
from gear_plugin.jobs.joined import Joined, node_id
from tests.unit.jobs.fake_manager import FakeManager
from tests.waiting import eventually

TOKEN = Token("0123456789abcdef", "ab" * 32)
OTHER = Member("1" * 32, "10.0.0.9:2020")
THIRD = Member("2" * 32, "10.0.0.8:2020")

Start = Callable[..., Joined]


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    manager = FakeManager(TOKEN)
    manager.set(OTHER)
    yield manager
    manager.stop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "gear"


@pytest.fixture
def start(manager: FakeManager, root: Path) -> Iterator[Start]:
    started: list[Joined] = []

    def start(
        token: Token = TOKEN, on_settings: Callable[[Settings], None] = lambda _: None
    ) -> Joined:
        joined = Joined(
            root,
            token,
            Calls(token, connect_s=2, stall_s=5),
            manager.address,
            ":2020",
            on_settings=on_settings,
            wait_s=5,
            settle_s=0,
            first_pause_s=0.01,
        )
        started.append(joined)
        joined.start()
        return joined

    yield start
    for joined in started:
        joined.stop()


def nodes(joined: Joined) -> set[str]:
    return {member.node for member in joined.members().nodes}


def test_node_joins(manager: FakeManager, start: Start) -> None:
    """It says who and where it is, and learns who else is there and what to use."""
    told: list[Settings] = []
    joined = start(on_settings=told.append)
    eventually(lambda: nodes(joined) == {OTHER.node, joined.node})
    assert manager.joins == [{"node": joined.node, "address": ":2020", "version": __version__}]
    eventually(lambda: told == [manager.settings])
    assert joined.settings() == manager.settings
    status = joined.status()
    assert status["cluster"] == TOKEN.cluster
    assert status["node"] == joined.node
    assert status["address"] == "127.0.0.1:2020"
    assert status["members"] == joined.members().as_json()
    assert status["trouble"] == ""


def test_news_comes_without_asking_again_and_again(manager: FakeManager, start: Start) -> None:
    """One question is held until there is news."""
    joined = start()
    eventually(lambda: joined.node in nodes(joined))
    mine = Member(joined.node, "127.0.0.1:2020")
    manager.set(OTHER, THIRD, mine)
    eventually(lambda: THIRD.node in nodes(joined))
    manager.set(THIRD, mine)
    eventually(lambda: OTHER.node not in nodes(joined))
    assert len(manager.requests) <= 5
    assert len(manager.joins) == 1


def test_same_list_is_the_same_object(start: Start) -> None:
    """Whoever computes something from it may keep that."""
    joined = start()
    eventually(lambda: joined.node in nodes(joined))
    assert joined.members() is joined.members()


def test_node_that_is_taken_off_joins_again(manager: FakeManager, start: Start) -> None:
    """The manager lost its list, say; with the same identity."""
    joined = start()
    eventually(lambda: joined.node in nodes(joined))
    manager.set(OTHER)
    eventually(lambda: len(manager.joins) == 2)
    assert {join["node"] for join in manager.joins} == {joined.node}
    eventually(lambda: joined.node in nodes(joined))


def test_node_that_moves_joins_again(
    manager: FakeManager, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address towards the manager is another one."""
    joined = start()
    eventually(lambda: joined.node in nodes(joined))
    monkeypatch.setattr(Joined, "_here", lambda _self: "10.1.1.1")
    manager.set(*manager.members.nodes, THIRD)
    eventually(lambda: len(manager.joins) == 2)


def test_manager_that_returns_is_found(
    manager: FakeManager, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """What was known stays known meanwhile."""
    joined = start()
    eventually(lambda: joined.node in nodes(joined))
    manager.stop()
    eventually(lambda: joined.status()["trouble"])
    assert OTHER.node in nodes(joined)
    again = FakeManager(TOKEN, manager.port)
    again.members = manager.members
    again.set(THIRD)
    eventually(lambda: nodes(joined) == {THIRD.node, joined.node})
    assert joined.status()["trouble"] == ""
    joined.stop()
    again.stop()
    caplog.clear()


def test_start_without_a_manager_uses_what_was_known(
    manager: FakeManager, start: Start, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same node, its members and its settings."""
    first = start()
    eventually(lambda: first.node in nodes(first))
    eventually((root / "cluster.json").exists)
    first.stop()
    manager.stop()
    told: list[Settings] = []
    second = start(on_settings=told.append)
    assert second.node == first.node
    assert second.members() == first.members()
    eventually(lambda: told == [manager.settings])
    caplog.clear()


def test_what_is_kept_holds_no_secret(start: Start, root: Path) -> None:
    """And is the answer of the manager."""
    joined = start()
    path = root / "cluster.json"
    eventually(path.exists)
    kept = json.loads(path.read_text())
    assert kept["cluster"] == TOKEN.cluster
    assert kept["node"] == joined.node
    assert TOKEN.secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kept", ["", "{", "[]", '{"cluster": 7}'])
def test_what_cannot_be_read_is_not_needed(
    start: Start, root: Path, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The manager knows."""
    root.mkdir()
    (root / "cluster.json").write_text(kept)
    joined = start()
    eventually(lambda: joined.node in nodes(joined))
    assert "cluster.json cannot be read" in caplog.text
    caplog.clear()


def test_what_is_known_of_another_cluster_is_forgotten(
    manager: FakeManager, start: Start, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its nodes have other objects, and another token."""
    first = start()
    eventually((root / "cluster.json").exists)
    first.stop()
    second = start(token=Token("fedcba9876543210", "ab" * 32))
    assert second.members().nodes == ()
    assert second.settings() == Settings()
    second.stop()
    caplog.clear()


def test_a_manager_that_goes_after_the_stop_is_no_trouble(
    manager: FakeManager, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """The question that it held is broken off then."""
    others = set(threading.enumerate())
    joined = start()
    eventually(lambda: joined.node in nodes(joined))
    new = set(threading.enumerate()) - others
    (thread,) = [one for one in new if one.name == "joined"]
    joined.stop()
    manager.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert [one for one in caplog.records if manager.address in one.getMessage()] == []


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (Token(TOKEN.cluster, "cd" * 32), "that is not the cluster's token"),
        (Token("fedcba9876543210", "ab" * 32), "that is the token of cluster fedcba9876543210"),
    ],
)
def test_wrong_token_is_one_clear_line(
    manager: FakeManager,
    start: Start,
    token: Token,
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However often it is tried; no secret is in it."""
    joined = start(token=token)
    eventually(lambda: len(manager.requests) >= 4)
    assert says in joined.status()["trouble"]
    (record,) = caplog.records
    assert says in record.getMessage()
    assert "`token` in docs/settings.md" in record.getMessage()
    assert token.secret not in caplog.text
    assert joined.members().nodes == ()
    caplog.clear()


def test_manager_of_another_cluster_is_refused(
    manager: FakeManager, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Even one that lets everybody in."""

    class Open(Token):
        def admit(self, header: str) -> None:
            """Anybody."""

    manager.token = Open("fedcba9876543210", "ab" * 32)
    joined = start()
    eventually(lambda: joined.status()["trouble"])
    assert "is of cluster fedcba9876543210" in joined.status()["trouble"]
    assert joined.members().nodes == ()
    caplog.clear()


def test_trouble_is_repeated_after_a_minute(
    manager: FakeManager,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not more often."""
    monkeypatch.setattr(module, "_REMIND_S", 0.05)
    start(token=Token(TOKEN.cluster, "cd" * 32))
    eventually(lambda: len(caplog.records) >= 2)
    caplog.clear()


def test_node_leaves(manager: FakeManager, start: Start, root: Path) -> None:
    """And does not come back by itself, but with the next start."""
    joined = start()
    eventually((root / "cluster.json").exists)
    joined.leave()
    assert {node.node for node in manager.members.nodes} == {OTHER.node}
    assert joined.members().nodes == ()
    assert not (root / "cluster.json").exists()
    again = start()
    assert again.node == joined.node
    eventually(lambda: again.node in nodes(again))


def test_leaving_says_what_failed(
    manager: FakeManager, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """No manager, or one that does not let us in."""
    with pytest.raises(AccessDenied):
        start(token=Token(TOKEN.cluster, "cd" * 32)).leave()
    manager.stop()
    with pytest.raises(SourceUnavailable):
        start().leave()
    caplog.clear()


def test_node_joins_when_its_port_answers(
    manager: FakeManager, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: the others would set it aside.  Settings are known all the same."""
    monkeypatch.setattr(module, "_PORT_POLL_S", 0.01)
    asked: list[int] = []
    is_up = threading.Event()

    def is_served() -> bool:
        asked.append(1)
        return is_up.is_set()

    calls = Calls(TOKEN, connect_s=2, stall_s=5)
    joined = Joined(root, TOKEN, calls, manager.address, ":2020", is_served=is_served, wait_s=5)
    joined.start()
    eventually(lambda: len(asked) > 3)
    assert manager.requests == []
    is_up.set()
    eventually(lambda: joined.node in nodes(joined))
    joined.stop()


def test_node_whose_port_never_answers_joins_in_the_end(
    manager: FakeManager,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It needs the others and the settings even so."""
    monkeypatch.setattr(module, "_PORT_POLL_S", 0.01)
    monkeypatch.setattr(module, "_PORT_S", 0.05)
    calls = Calls(TOKEN, connect_s=2, stall_s=5)
    joined = Joined(root, TOKEN, calls, manager.address, ":2020", is_served=lambda: False, wait_s=5)
    joined.start()
    eventually(lambda: joined.node in nodes(joined))
    joined.stop()
    assert "port does not answer" in caplog.text
    caplog.clear()


def test_settings_that_are_not_known_are_not_told(
    manager: FakeManager, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the first answer ever; empty ones would mean the node's own store."""
    manager.stop()
    told: list[Settings] = []
    joined = start(on_settings=told.append)
    eventually(lambda: joined.status()["trouble"])
    assert told == []
    caplog.clear()


def test_node_id_is_made_once(root: Path) -> None:
    """32 hex digits, in a file that is not written again."""
    made = node_id(root)
    assert len(made) == 32
    assert node_id(root) == made
    assert stat.S_IMODE((root / "node-id").stat().st_mode) == 0o444


def test_damaged_node_id_is_replaced(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By a new one: the old one is not known."""
    root.mkdir()
    (root / "node-id").write_bytes(b"\xff" * 32)
    made = node_id(root)
    assert node_id(root) == made
    assert "holds no node's id" in caplog.text
    caplog.clear()

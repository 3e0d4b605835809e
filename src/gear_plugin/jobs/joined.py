"""
This node's place in the cluster: joining it, and knowing who is in it.

    <root>/node-id        the node's id, made once
    <root>/cluster.json   what the manager said last, as `POST /join` answers

Only one thread talks to the manager, and nobody waits for it: `members` and
`settings` are what was said last, if need be before the last restart.  A node
that cannot reach a manager goes on with that for as long as it takes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gear_plugin import __version__
from gear_plugin.cluster import Members, Settings, Token, parse_node
from gear_plugin.content.calls import Calls, one_line
from gear_plugin.durable import write_once
from gear_plugin.errors import AccessDenied, BadRequest, GearError

log = logging.getLogger(__name__)

WAIT_S = 25.0
"""How long the manager may hold a question for news."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
_SETTLE_S = 1.0
"""After news: when a thousand nodes join at once, each is told some of the lists, not all."""
_REMIND_S = 60.0
"""A trouble that stays is logged this often."""
_LEAVE_S = 10.0
_PORT_S = 30.0
_PORT_POLL_S = 0.1
_NODE_FILE, _CLUSTER_FILE = "node-id", "cluster.json"


@dataclass(frozen=True, slots=True)
class Place:
    """What the manager says about the cluster and this node's place in it."""

    cluster: str
    address: str
    """Where the others reach this node; empty: not known."""
    settings: Settings
    members: Members

    def as_json(self, node: str) -> dict[str, Any]:
        """The answer of `POST /join`."""
        return {
            "cluster": self.cluster,
            "node": node,
            "address": self.address,
            "settings": self.settings.as_json(),
            **self.members.as_json(),
        }

    @classmethod
    def from_json(cls, value: object) -> Place:
        """The inverse, further keys ignored; raises BadRequest."""
        if isinstance(value, dict):
            cluster, address = value.get("cluster"), value.get("address")
            if isinstance(cluster, str) and isinstance(address, str):
                settings = Settings.from_json(value.get("settings"))
                return cls(cluster, address, settings, Members.from_json(value))
        raise BadRequest(f"not the answer of a manager: {value!r:.200}")


def node_id(root: Path) -> str:
    """
    This node's id, made and kept in *root* if there is none.

    Raises OSError and StorageFull.
    """
    path = root / _NODE_FILE
    with contextlib.suppress(FileNotFoundError):
        try:
            return parse_node(path.read_text().strip())
        except (BadRequest, UnicodeDecodeError):
            log.warning("%s holds no node's id; this node gets another one", path)
            path.unlink()
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), write_once(path, replace=False) as file:
        file.write(secrets.token_hex(16).encode() + b"\n")
    return parse_node(path.read_text().strip())


class Joined:
    """
    Keeps this node in the cluster of *token*, through the manager at *manager*.

    *address* is where the others reach the node's port: `HOST:PORT`, or
    `:PORT` at the address that the manager sees.  *on_settings* is called in
    the thread that `start` starts, with the settings known before, if any, and
    with each new answer of the manager.  *is_served* says whether the node's port
    answers: before that the others would ask in vain, and set the node aside.
    """

    def __init__(
        self,
        root: Path,
        token: Token,
        calls: Calls,
        manager: str,
        address: str,
        *,
        on_settings: Callable[[Settings], None] = lambda _settings: None,
        is_served: Callable[[], bool] = lambda: True,
        wait_s: float = WAIT_S,
        settle_s: float = _SETTLE_S,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self.node = node_id(root)
        self._file = root / _CLUSTER_FILE
        self._token = token
        self._calls = calls
        self._manager = manager
        self._address = address
        self._on_settings = on_settings
        self._is_served = is_served
        self._wait_s = wait_s
        self._settle_s = settle_s
        self._first_pause_s = first_pause_s
        self._stopped = threading.Event()
        known = self._remembered()
        self._was_known = known is not None
        self._place = known or self._nowhere()  # replaced whole, by one thread
        self._joined_from: str | None = None
        """This machine's address when it joined last; None: not since the start."""
        self._trouble = ""
        self._reminded_s = 0.0

    def start(self) -> None:
        """Begin to join; returns at once."""
        threading.Thread(target=self._run, name="joined", daemon=True).start()

    def stop(self) -> None:
        """Ask no more; the node stays in the list."""
        self._stopped.set()

    def leave(self) -> None:
        """
        Be taken off the list, and join again only after a restart.

        Raises SourceUnavailable, AccessDenied: the manager did not do it.
        """
        self._stopped.set()
        self._calls.ask("POST", self._manager, "/leave", {"node": self.node}, answer_s=_LEAVE_S)
        self._place = self._nowhere()
        self._file.unlink(missing_ok=True)
        log.info("this node has left cluster %s", self._token.cluster)

    def members(self) -> Members:
        """The nodes, as far as is known; the same object until there is news."""
        return self._place.members

    def settings(self) -> Settings:
        """What the cluster gives to its nodes, as far as is known."""
        return self._place.settings

    def status(self) -> dict[str, Any]:
        """For people: also whether the manager answers, and what is wrong if it does not."""
        place = self._place
        return {
            "node": self.node,
            "cluster": place.cluster,
            "address": place.address,
            "manager": self._manager,
            "trouble": self._trouble,
            "settings": place.settings.as_json(),
            "members": place.members.as_json(),
        }

    def _nowhere(self) -> Place:
        return Place(self._token.cluster, "", Settings(), Members(0, ()))

    def _remembered(self) -> Place | None:
        """What the manager said before the start; None: nothing that is of use."""
        try:
            place = Place.from_json(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, GearError) as error:
            log.warning("%s cannot be read, and is not needed: %s", self._file, error)
            return None
        return place if place.cluster == self._token.cluster else None

    def _await_port(self) -> None:
        deadline_s = time.monotonic() + _PORT_S
        while not self._is_served() and not self._stopped.wait(_PORT_POLL_S):
            if time.monotonic() > deadline_s:
                log.warning("this node's port does not answer; others will get nothing from it")
                return

    def _run(self) -> None:
        if self._was_known:
            self._on_settings(self._place.settings)
        self._await_port()
        pause_s = self._first_pause_s
        while not self._stopped.is_set():
            begun_s = time.monotonic()
            try:
                is_news = self._step()
            except GearError as error:
                if self._stopped.is_set():
                    return  # nobody is in touch any more, and that is no trouble
                self._note_trouble(error)
            except Exception:
                log.exception("internal error: not in touch with the manager")
            else:
                self._note_trouble(None)
                pause_s = self._first_pause_s
                # The second is a manager, or something before it, that holds no question.
                if is_news or time.monotonic() - begun_s < self._settle_s:
                    self._stopped.wait(self._settle_s)
                continue
            # Not all nodes at the same moment, when a manager comes back.
            self._stopped.wait(pause_s * random.uniform(0.5, 1))  # noqa: S311 - no secret
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _step(self) -> bool:
        """One question to the manager; whether its answer is news."""
        here = self._here()
        known = {member.node for member in self._place.members.nodes}
        if self._joined_from is None or self.node not in known or here != self._joined_from:
            self._join()
            self._joined_from = here
            return True
        version = self._place.members.version
        answer = self._calls.ask(
            "GET",
            self._manager,
            f"/nodes?version={version}&wait={self._wait_s:g}",
            answer_s=self._wait_s + self._calls.stall_s,
        )
        members = Members.from_json(answer)
        if members == self._place.members:
            return False
        if not self._stopped.is_set():
            place = self._place
            own = [member.address for member in members.nodes if member.node == self.node]
            address = own[0] if own else place.address
            self._keep(Place(place.cluster, address, place.settings, members))
        return True

    def _join(self) -> None:
        answer = self._calls.ask(
            "POST",
            self._manager,
            "/join",
            {"node": self.node, "address": self._address, "version": __version__},
        )
        place = Place.from_json(answer)
        if place.cluster != self._token.cluster:
            raise AccessDenied(
                f"the manager at {self._manager} is of cluster {one_line(place.cluster)},"
                f" and the token of cluster {self._token.cluster}"
            )
        if self._stopped.is_set():
            return
        log.info(
            "joined cluster %s as node %s at %s: %d nodes",
            place.cluster,
            self.node,
            place.address,
            len(place.members.nodes),
        )
        self._keep(place)
        self._on_settings(place.settings)

    def _keep(self, place: Place) -> None:
        self._place = place
        data = json.dumps(place.as_json(self.node)).encode()
        try:
            with write_once(self._file, mode=0o600) as file:
                file.write(data)
        except (OSError, GearError) as error:
            # It is for the next start; this one knows.
            log.warning("%s cannot be written: %s", self._file, error)

    def _here(self) -> str:
        """
        The address from which this machine would reach the manager now.

        When it changes, the others have to be told.  Nothing is sent.
        """
        host, _, port = self._manager.rpartition(":")
        with contextlib.suppress(OSError):
            for family, kind, proto, _, target in socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_DGRAM
            ):
                with socket.socket(family, kind, proto) as probe:
                    probe.connect(target)
                    return str(probe.getsockname()[0])
        return self._joined_from or ""

    def _note_trouble(self, error: GearError | None) -> None:
        """Say what is wrong when it is new, and once a minute."""
        trouble = "" if error is None else str(error)
        if not trouble:
            if self._trouble:
                log.info("in touch with the manager again")
            self._trouble = trouble
            return
        now_s = time.monotonic()
        if trouble != self._trouble or now_s - self._reminded_s >= _REMIND_S:
            hint = "; see `token` in docs/settings.md" if isinstance(error, AccessDenied) else ""
            log.warning("not in touch with the manager: %s%s", trouble, hint)
            self._reminded_s = now_s
        self._trouble = trouble

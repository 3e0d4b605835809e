"""
Where `gear verify --repair` looks for good copies.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

from gear_plugin.catalog import Roster
from gear_plugin.cli import clustered, wiring
from gear_plugin.cluster import Members, Token
from gear_plugin.config import Config
from gear_plugin.content import BuiltFiles, FileSource, ObjectSource
from gear_plugin.content.peer import CachedCopies
from gear_plugin.digest import Digest
from gear_plugin.errors import GearError

_NODE_S = 3.0
"""A node that does not answer is not asked again soon."""


class GoodCopies:
    """
    Where good copies are looked for: this machine's caches, what was built here,
    and the caches of the cluster's nodes, which are looked up when they are needed.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._here: list[ObjectSource] = [
            FileSource(f"cache of {node.name}", node.root / "public")
            for node in wiring.nodes(config)
        ]
        self._here.append(BuiltFiles(config.root / "build"))
        self._lock = threading.Lock()
        self._nodes: CachedCopies | None = None

    def __call__(self, digest: Digest) -> Iterator[ObjectSource]:
        yield from self._here
        with self._lock:
            if self._nodes is None:
                self._nodes = _nodes_of(self._config)
        yield from self._nodes.sources(digest)


def _nodes_of(config: Config) -> CachedCopies:
    """The cluster that the catalog knows, if there is one that can be asked."""

    def ask(roster: Roster) -> tuple[Token | None, Members]:
        members = roster.members()
        # A cluster gets its token from whoever asks first.
        return (roster.identity() if members.nodes else None), members

    token, members = None, Members(0, ())
    try:
        token, members = wiring.ask_roster(config, ask)
    except GearError as error:
        print(f"gear: other nodes are not asked for good copies: {error}", file=sys.stderr)
    calls = clustered.calls(config, token or Token.new(), connect_s=_NODE_S, stall_s=_NODE_S)
    return CachedCopies(calls, members)

"""
The nodes of a cluster, and what they are told.

JSON shapes (`as_json`, `from_json`) are those of :2019 and :2020; docs/http-api.md.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from gear_plugin.cluster.ring import HOMES, Ring
from gear_plugin.digest import Digest
from gear_plugin.errors import BadRequest

_NODE = re.compile(r"[0-9a-f]{32}\Z")
_ADDRESS = re.compile(
    r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}))?:([0-9]{1,5})\Z"
)
_MAX_PORT = 65535


def parse_node(value: object) -> str:
    """A node's id, 32 hex digits; raises BadRequest."""
    if not isinstance(value, str) or not _NODE.match(value):
        raise BadRequest(f"not a node's id (32 hex digits): {value!r:.80}")
    return value


def parse_address(value: object) -> str:
    """`HOST:PORT`, or `:PORT` where the other side knows the host; raises BadRequest."""
    found = _ADDRESS.match(value) if isinstance(value, str) else None
    if not found or not 0 < int(found[2]) <= _MAX_PORT:
        raise BadRequest(f"not an address (HOST:PORT): {value!r:.80}")
    return found[0]


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """One node: its id, where others reach its port (`HOST:PORT`), and whether it answers."""

    node: str
    address: str
    is_live: bool = True

    def as_json(self) -> dict[str, Any]:
        """One element of `nodes` in answers."""
        return {"node": self.node, "address": self.address, "is_live": self.is_live}

    @classmethod
    def from_json(cls, value: object) -> Member:
        """The inverse; raises BadRequest."""
        if not isinstance(value, dict) or not isinstance(value.get("is_live"), bool):
            raise BadRequest(f"not a node: {value!r:.200}")
        return cls(
            parse_node(value.get("node")), parse_address(value.get("address")), value["is_live"]
        )


@dataclass(frozen=True)  # no slots: what follows from the nodes is kept beside them
class Members:
    """All nodes, by id; *version* grows whenever who is live, or where, changes."""

    version: int
    nodes: tuple[Member, ...]

    def live(self) -> tuple[Member, ...]:
        """Those that answer."""
        return self._live

    def homes(self, digest: Digest, count: int = HOMES) -> list[Member]:
        """As `cluster.homes` of the live nodes, which are sorted only once."""
        return [self._live[place] for place in self._ring.homes(digest, count)]

    @functools.cached_property
    def _live(self) -> tuple[Member, ...]:
        return tuple(node for node in self.nodes if node.is_live)

    @functools.cached_property
    def _ring(self) -> Ring:
        return Ring([node.node for node in self._live])

    def as_json(self) -> dict[str, Any]:
        """The answer of `GET /nodes`."""
        return {"version": self.version, "nodes": [node.as_json() for node in self.nodes]}

    @classmethod
    def from_json(cls, value: object) -> Members:
        """The inverse, further keys ignored; raises BadRequest."""
        if not isinstance(value, dict):
            raise BadRequest(f"not a list of nodes: {value!r:.200}")
        version, nodes = value.get("version"), value.get("nodes")
        if not isinstance(version, int) or isinstance(version, bool) or not isinstance(nodes, list):
            raise BadRequest(f"not a list of nodes: {value!r:.200}")
        return cls(version, tuple(sorted(Member.from_json(node) for node in nodes)))


@dataclass(frozen=True, slots=True)
class Settings:
    """
    What a cluster gives to every node that joins; empty: the node's own setting.

    `store`: `nfs://HOST/EXPORT`, or a directory that every node has.
    `catalog`: as the setting of that name.
    """

    store: str = ""
    catalog: str = ""

    def as_json(self) -> dict[str, Any]:
        """`settings` in the answer of `POST /join`."""
        return {"store": self.store, "catalog": self.catalog}

    @classmethod
    def from_json(cls, value: object) -> Settings:
        """The inverse, further keys ignored; raises BadRequest."""
        if isinstance(value, dict):
            store, catalog = value.get("store", ""), value.get("catalog", "")
            if isinstance(store, str) and isinstance(catalog, str):
                return cls(store, catalog)
        raise BadRequest(f"not the settings of a cluster: {value!r:.200}")

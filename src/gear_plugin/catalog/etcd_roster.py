"""
The cluster's records in etcd, for any number of managers.

Keys below the prefix; all are text:

    cluster/token               the cluster's token
    cluster/nodes/<node>        JSON: address, is_live
    cluster/version             empty; set with each change of a node
    cluster/seen/<manager>      JSON: the nodes that answered it
    cluster/round/<manager>     empty; set with each report

A version, and the round of a report, is the revision of etcd that last set
its key: it grows by itself.  A node is changed in one transaction that asks
that its key be as it was read, so managers change different nodes without
waiting for one another.

Safe from any thread, process and machine.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from gear_plugin.catalog.etcd_address import EtcdAddress
from gear_plugin.catalog.etcd_client import rpc
from gear_plugin.catalog.etcd_parts import FORMAT, delete, is_at, open_etcd, put
from gear_plugin.catalog.roster import Report
from gear_plugin.cluster import Member, Members, Token
from gear_plugin.errors import Damaged, GearError

_PAGE = 1000
_BATCH = 100
"""Nodes a transaction, with one key more: etcd's default limit is 128 (--max-txn-ops)."""
_POLL_S = 0.5
"""How often `wait` looks: two small reads a second, and nothing to set up again after a failure."""

_Nodes = dict[str, tuple[Member, int]]
"""By id; with the revision that last changed the node's key."""
_Change = Callable[[_Nodes], Mapping[str, Member | None]]
"""From the nodes as they are to those that must become different; None: removed."""


class EtcdRoster:
    """The roster at *address*; opening it, and *timeout_s*, are as with `EtcdCatalog`."""

    def __init__(self, address: EtcdAddress, *, timeout_s: float) -> None:
        self._prefix = address.prefix
        self._etcd = open_etcd(address, timeout_s=timeout_s)

    def identity(self) -> Token:
        key = self._key("token")
        while True:
            for value in self._etcd.get(key).kvs:
                return Token.parse(value.value.decode())
            first = rpc.TxnRequest(
                compare=[is_at(key, 0)],
                success=[
                    put(f"{self._prefix}/format".encode(), FORMAT),
                    put(key, Token.new().text()),
                ],
            )
            self._etcd.txn(first)

    def join(self, node: str, address: str) -> Members:
        wanted = Member(node, address)

        def change(nodes: _Nodes) -> Mapping[str, Member | None]:
            return {} if node in nodes and nodes[node][0] == wanted else {node: wanted}

        return self._change(change)

    def leave(self, node: str) -> Members:
        return self._change(lambda nodes: {node: None} if node in nodes else {})

    def set_live(self, changes: Mapping[str, bool]) -> Members:
        def change(nodes: _Nodes) -> Mapping[str, Member | None]:
            return {
                node: dataclasses.replace(nodes[node][0], is_live=is_live)
                for node, is_live in changes.items()
                if node in nodes and nodes[node][0].is_live != is_live
            }

        return self._change(change)

    def members(self) -> Members:
        version, nodes = self._read()
        return _members(version, nodes)

    def wait(self, version: int, timeout_s: float) -> Members:
        deadline_s = time.monotonic() + timeout_s
        while self._version() == version and time.monotonic() < deadline_s:
            time.sleep(max(0.0, min(_POLL_S, deadline_s - time.monotonic())))
        return self.members()

    def report(self, manager: str, seen: Collection[str]) -> None:
        # A round alone is a few bytes; thousands of ids each time would fill etcd.
        number, nodes = self._key(f"round/{manager}"), self._key(f"seen/{manager}")
        text = json.dumps(sorted(seen))
        again = put(number, "")
        if not self._etcd.txn(rpc.TxnRequest(compare=[_holds(nodes, text)], success=[again])):
            self._etcd.txn(rpc.TxnRequest(success=[put(nodes, text), again]))

    def reports(self) -> dict[str, Report]:
        rounds = {
            _last_word(value): value.mod_revision
            for value in self._etcd.scan(self._key("round/"), page=_PAGE)
        }
        # One at a time: each may be of hundreds of kilobytes.
        return {
            _last_word(value): Report(rounds[_last_word(value)], _decode_seen(value.value))
            for value in self._etcd.scan(self._key("seen/"), page=1)
            if _last_word(value) in rounds
        }

    def close(self) -> None:
        self._etcd.close()

    def _key(self, name: str) -> bytes:
        return f"{self._prefix}/cluster/{name}".encode()

    def _version(self) -> int:
        return _revision(self._etcd.get(self._key("version")).kvs)

    def _read(self) -> tuple[int, _Nodes]:
        """The version and the nodes, of one moment."""
        answer = self._etcd.get(self._key("version"))
        values = self._etcd.scan(self._key("nodes/"), page=_PAGE, revision=answer.header.revision)
        nodes = {
            _last_word(value): (_decode(_last_word(value), value.value), value.mod_revision)
            for value in values
        }
        return _revision(answer.kvs), nodes

    def _change(self, change: _Change) -> Members:
        """Make nodes what *change* wants, asking again whenever others were quicker."""
        while True:
            version, nodes = self._read()
            changes = list(change(nodes).items())
            if not changes:
                return _members(version, nodes)
            for at in range(0, len(changes), _BATCH):
                self._etcd.txn(self._transaction(changes[at : at + _BATCH], nodes))

    def _transaction(
        self, changes: Sequence[tuple[str, Member | None]], nodes: _Nodes
    ) -> rpc.TxnRequest:
        compare, success = [], [put(self._key("version"), "")]
        for node, member in changes:
            key = self._key(f"nodes/{node}")
            compare.append(is_at(key, nodes[node][1] if node in nodes else 0))
            success.append(delete(key) if member is None else put(key, _encode(member)))
        return rpc.TxnRequest(compare=compare, success=success)


def _members(version: int, nodes: _Nodes) -> Members:
    return Members(version, tuple(sorted(member for member, _ in nodes.values())))


def _encode(member: Member) -> str:
    return json.dumps({"address": member.address, "is_live": member.is_live})


def _decode(node: str, data: bytes) -> Member:
    try:
        return Member.from_json({"node": node, **json.loads(data)})
    except (ValueError, TypeError, GearError) as error:
        raise Damaged(f"the catalog holds a damaged node: {node} {data[:100]!r}") from error


def _decode_seen(data: bytes) -> frozenset[str]:
    try:
        return frozenset(str(node) for node in json.loads(data))
    except (ValueError, TypeError) as error:
        raise Damaged(f"the catalog holds a damaged report: {data[:100]!r}") from error


def _revision(values: Iterable[Any]) -> int:
    """Of the one key, or 0 if it is not there."""
    return next((int(value.mod_revision) for value in values), 0)


def _last_word(value: Any) -> str:
    return str(value.key.rpartition(b"/")[2].decode())


def _holds(key: bytes, value: str) -> rpc.Compare:
    """The key is there with that value."""
    compare = rpc.Compare(key=key, target=rpc.Compare.VALUE, result=rpc.Compare.EQUAL)
    compare.value = value.encode()
    return compare

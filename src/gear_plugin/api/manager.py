"""
The manager's port, :2019: who is in the cluster, and a way to the store for
nodes that have none of their own.

Stateless over the catalog: any number of managers may stand behind one address.
docs/http-api.md shows each call; `manager_calls` describes them.

What may hang is kept from what must not: nodes are answered about from memory
(`Lookout`), the store is reached through threads that can be given up
(`Relay`), and a catalog on a share that hangs costs the threads of one gate.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import json
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flask import Flask, Response, request
from prometheus_client import CollectorRegistry, Counter, Gauge

from gear_plugin.api.door import JSON, body, cluster_app, reply
from gear_plugin.api.gate import Gate
from gear_plugin.api.manager_calls import CALLS, TITLE
from gear_plugin.api.metrics import CheckTimes, add_metrics
from gear_plugin.api.openapi import add_document
from gear_plugin.catalog import Catalog, Roster
from gear_plugin.cluster import Members, Settings, Token, parse_address, parse_node
from gear_plugin.content import CHUNK_BYTES, Reading, Relay
from gear_plugin.digest import Digest
from gear_plugin.durable import TEMP_PREFIX, remove_stale, storage_full
from gear_plugin.errors import BadRequest, ContentCorrupt, GearError, SourceUnavailable
from gear_plugin.jobs.lookout import Lookout

log = logging.getLogger(__name__)

STORE_PLACES = 32
"""Uploads, and as many downloads, at once; each holds a thread and a few MiB."""
_CATALOG_PLACES = 16
MAX_WAIT_S = 30.0
_MAX_VERSION_LENGTH = 100
_STALE_S = 24 * 3600.0
"""Longer than any upload; another manager may share the folder."""


@dataclass(frozen=True, slots=True)
class Manager:
    """What a manager's app works with; all of it is used from many threads."""

    token: Token
    settings: Settings
    """What a node gets when it joins."""
    roster: Roster
    lookout: Lookout
    """Over the same roster, started."""
    catalog: Catalog
    relay: Relay
    """To the store."""
    incoming: Path
    """A folder of its own for what is being uploaded."""
    check_times: CheckTimes
    """For `GET /metrics`."""


def manager_app(manager: Manager) -> Flask:
    """The app; `manager.incoming` is made if it is not there, and tidied up if it is."""
    manager.incoming.mkdir(parents=True, exist_ok=True)
    remove_stale(manager.incoming, older_than_s=_STALE_S)
    app = cluster_app("gear-manager", lambda: manager.token)
    calls = _Calls(manager, add_metrics(app))
    app.post("/join")(calls.join)
    app.post("/leave")(calls.leave)
    app.get("/nodes")(calls.nodes)
    app.get("/settings")(calls.settings)
    app.post("/put/<oid>/<cid>")(calls.put)
    app.post("/get/<name>")(calls.get)
    add_document(app, TITLE, CALLS)
    return app


class _Calls:
    """The views."""

    def __init__(self, manager: Manager, registry: CollectorRegistry) -> None:
        self._manager = manager
        self._answer: tuple[Members | None, bytes] = (None, b"")
        self._catalog_gate = Gate("calls of the catalog", _CATALOG_PLACES)
        self._uploads = Gate("uploads", STORE_PLACES)
        self._downloads = Gate("downloads", STORE_PLACES)
        self._received = Counter(
            "gear_manager_received_bytes", "Content of uploaded objects.", registry=registry
        )
        self._sent = Counter(
            "gear_manager_sent_bytes", "Content of objects handed out.", registry=registry
        )
        registry.register(manager.check_times.histogram)
        nodes = Gauge("gear_manager_nodes", "Nodes of the cluster.", ("state",), registry=registry)
        nodes.labels("live").set_function(lambda: self._count(is_live=True))
        nodes.labels("dead").set_function(lambda: self._count(is_live=False))
        waiting = Gauge(
            "gear_manager_waiting_requests", "Nodes that wait for news.", registry=registry
        )
        waiting.set_function(lambda: manager.lookout.waiting)

    def join(self) -> Response:
        asked = body()
        node = parse_node(asked.get("node"))
        address = _seen_from_here(parse_address(asked.get("address")))
        version = asked.get("version", "")
        if not isinstance(version, str) or len(version) > _MAX_VERSION_LENGTH:
            raise BadRequest(f"not a version of Gear: {version!r:.80}")
        with self._catalog_gate.place():
            members = self._manager.roster.join(node, address)
        self._manager.lookout.offer(members)
        log.info("node %s (Gear %s) has joined at %s", node, version or "?", address)
        return reply(
            {
                "cluster": self._manager.token.cluster,
                "node": node,
                "address": address,
                "settings": self._manager.settings.as_json(),
                **members.as_json(),
            }
        )

    def leave(self) -> Response:
        node = parse_node(body().get("node"))
        with self._catalog_gate.place():
            members = self._manager.roster.leave(node)
        self._manager.lookout.offer(members)
        log.info("node %s has left", node)
        return reply({})

    def nodes(self) -> Response:
        lookout = self._manager.lookout
        version, wait_s = _number("version"), _number("wait") or 0.0
        if version is None:
            members = lookout.now()
        else:
            members = lookout.wait(int(version), min(wait_s, MAX_WAIT_S))
        return Response(self._encoded(members), content_type=JSON)

    def settings(self) -> Response:
        manager = self._manager
        return reply({"cluster": manager.token.cluster, "settings": manager.settings.as_json()})

    def _encoded(self, members: Members) -> bytes:
        # All who waited get the same: 10,000 nodes are 1 MB, and 10 ms to encode.
        held, data = self._answer
        if held is not members:
            data = json.dumps(members.as_json()).encode() + b"\n"
            self._answer = (members, data)
        return data

    def put(self, oid: str, cid: str) -> Response:
        name, digest = Digest.from_hex(oid).hex, Digest.parse(cid)

        def give_name() -> None:
            with self._catalog_gate.place():
                self._manager.catalog.name_object(name, digest)

        with self._uploads.place(), self._content(digest) as path:
            is_new = self._manager.relay.put(digest, path, give_name)
        return reply({"cid": str(digest), "is_new": is_new})

    def get(self, name: str) -> Response:
        digest = self._digest(name)
        self._downloads.enter()
        try:
            reading = self._manager.relay.read(digest)
        except BaseException:
            self._downloads.leave()
            raise

        def end() -> None:
            reading.close()
            self._downloads.leave()

        response = Response(self._chunks(digest, reading), content_type="application/octet-stream")
        response.call_on_close(end)
        return response

    def _digest(self, name: str) -> Digest:
        if ":" in name:
            return Digest.parse(name)
        Digest.from_hex(name)
        with self._catalog_gate.place():
            return self._manager.catalog.resolve(name)

    def _chunks(self, digest: Digest, reading: Reading) -> Iterator[bytes]:
        try:
            for chunk in reading:
                self._sent.inc(len(chunk))
                yield chunk
        except GearError as error:
            # The answer has begun; to break it off is the only way left to say so.
            log.warning("%s, broken off: %s", digest, error)
            raise ConnectionResetError(errno.ECONNRESET, "broken off") from error

    @contextlib.contextmanager
    def _content(self, digest: Digest) -> Iterator[Path]:
        """The request's body in a file, verified; nothing is left of it after the block."""
        path = self._manager.incoming / (TEMP_PREFIX + secrets.token_hex(8))
        hasher, size_bytes = hashlib.sha256(), 0
        try:
            with storage_full(path), path.open("xb") as file:
                while chunk := _next_chunk():
                    file.write(chunk)
                    hasher.update(chunk)
                    size_bytes += len(chunk)
            self._received.inc(size_bytes)
            if hasher.digest() != digest.raw:
                raise ContentCorrupt(
                    f"the {size_bytes} bytes that came are {Digest(hasher.digest())}, not {digest}"
                )
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _count(self, *, is_live: bool) -> int:
        try:
            return sum(node.is_live == is_live for node in self._manager.lookout.now().nodes)
        except SourceUnavailable:
            return 0


def _next_chunk() -> bytes:
    try:
        return request.stream.read(CHUNK_BYTES)
    except OSError as error:
        raise BadRequest(f"{request.path}: the body broke off: {error}") from error


def _number(name: str) -> float | None:
    """A query parameter that is a number of 0 or more; None: it is not there."""
    text = request.args.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise BadRequest(f"{request.path}: {name} must be a number, not {text!r:.60}")
    return value


def _seen_from_here(address: str) -> str:
    """*address*, with the caller's own where it has no host."""
    if not address.startswith(":"):
        return address
    try:
        host = ipaddress.ip_address(request.remote_addr or "")
    except ValueError as error:
        raise BadRequest("the node's host cannot be seen from here; set `advertise`") from error
    if isinstance(host, ipaddress.IPv6Address):
        return parse_address(f"{host.ipv4_mapped or f'[{host}]'}{address}")
    return parse_address(f"{host}{address}")

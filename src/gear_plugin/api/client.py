"""
The node's port, :2020: what other nodes, the manager and people may ask of a node.

    GET  /info                       this node
    GET  /metrics                    Prometheus
    GET  /openapi.json               these calls
    POST /get/IMAGENAME/TAG/PATH     have the node download a file (`image_path`)
    POST /download/OID|CID[?size=N]  an object's content
    POST /batch                      many objects in one stream (`batch`)
    POST /upload/IMAGENAME/TAG       build and push an image; GET: how far it is (`uploads`)

It runs in a process of its own beside the client process, which is the only
writer of the caches: this one opens what is in `public/`, and asks the other for
the rest over its socket.  A node is asked by its like for what it is a home of,
and gets that from the store or the manager, never from a third node: nobody
waits in a circle.

What one caller can hold is bounded: so many answers at once (`Gate`), fewer of
them that wait for an object, short bodies.  `connections` sees to slow peers.
docs/http-api.md shows every call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flask import Flask, Response, request
from werkzeug.wsgi import wrap_file

from gear_plugin import __version__
from gear_plugin.api.batch import MAX_BODY_BYTES, Batch, parse_digests
from gear_plugin.api.client_calls import CALLS, TITLE
from gear_plugin.api.client_metrics import PortMetrics
from gear_plugin.api.door import MAX_JSON_BYTES, cluster_app, reply
from gear_plugin.api.gate import Gate
from gear_plugin.api.image_path import find_object, parse_image
from gear_plugin.api.metrics import add_metrics
from gear_plugin.api.openapi import add_document
from gear_plugin.api.sending import Getting, OpenObject, PublicObjects, piece_bytes
from gear_plugin.api.uploads import Uploads
from gear_plugin.cluster import Token, parse_node
from gear_plugin.content.rate import RateLimit
from gear_plugin.digest import Digest
from gear_plugin.errors import BadRequest, ContentNotFound, SourceUnavailable

OCTETS = "application/octet-stream"
NODE_HEADER = "Gear-Node"
"""Says which node asks."""
CID_HEADER = "Gear-Cid"
"""Says in the answer of a download by OID what the content's id is."""


@dataclass(frozen=True, slots=True)
class PortLimits:
    """How much at once."""

    sending: int = 96
    """Downloads and batches; each holds a thread."""
    waiting: int = 48
    """Of these, downloads and batches that may wait for objects that are not here."""
    getting: int = 32
    """Objects that the client process is asked for."""
    getting_s: float = 70.0
    """One object; the client process gives up a little before (`fetch_timeout_s`)."""


class ClientProcess(Protocol):
    """What is asked of the client process; `content.LocalClient`."""

    def obtain(self, digest: Digest, size_bytes: int | None = None) -> None:
        """Have the object in `public/`; raises ContentNotFound and Unavailable."""
        ...

    def status(self) -> dict[str, Any]:
        """Its counts."""
        ...

    def cluster(self) -> dict[str, Any]:
        """`node`, `cluster`, `address` and `members`."""
        ...


@dataclass(frozen=True, slots=True)
class Collaborators:
    """What the port stands on."""

    token: Token
    client: ClientProcess
    quick_client: ClientProcess
    """The same for questions that it answers at once, so with a short time limit."""
    root: Path
    resolve: Callable[[str], Digest]
    """An object id's content, in bounded time; raises ContentNotFound, BadDigest, Unavailable."""
    uploads: Uploads
    upload_limit: int = 0
    """Bytes a second; 0: no bound."""
    limits: PortLimits = field(default_factory=PortLimits)


def client_app(parts: Collaborators) -> Flask:
    """The app; it starts threads, so it is made in the process that serves it."""
    app = cluster_app("gear-client", lambda: parts.token)
    port = _Port(parts, PortMetrics(add_metrics(app), parts.quick_client.status))
    app.config["MAX_CONTENT_LENGTH"] = max(MAX_BODY_BYTES, MAX_JSON_BYTES)
    app.url_map.merge_slashes = False  # would redirect a path that has an empty part
    app.after_request(port.count)
    app.get("/info")(port.info)
    app.post("/get/<path:rest>")(port.get)
    app.post("/download/<name>")(port.download)
    app.post("/batch")(port.batch)
    app.post("/upload/<path:rest>")(port.upload)
    app.get("/upload/<path:rest>")(port.upload_progress)
    add_document(app, TITLE, CALLS)
    return app


class _Port:
    """The views."""

    def __init__(self, parts: Collaborators, counts: PortMetrics) -> None:
        limits = parts.limits
        self._parts = parts
        self._begun_s = time.monotonic()
        self._counts = counts
        self._public = PublicObjects(parts.root)
        self._limit = RateLimit(parts.upload_limit)
        self._getting = Getting(
            parts.client.obtain, workers=limits.getting, timeout_s=limits.getting_s
        )
        self._sending = Gate("downloads from this node", limits.sending)
        self._waiting = Gate("downloads of what is not on this node yet", limits.waiting)

    def count(self, response: Response) -> Response:
        """After each request."""
        if response.status_code == 401:
            self._counts.refused.labels("token").inc()
        return response

    def info(self) -> Response:
        """`GET /info`."""
        status = self._parts.quick_client.status()
        cluster = self._parts.quick_client.cluster()
        return reply(
            {
                "node": cluster.get("node"),
                "cluster": cluster.get("cluster"),
                "version": __version__,
                "address": cluster.get("address"),
                "members_version": (cluster.get("members") or {}).get("version"),
                "cached": status.get("cached"),
                "fetched": status.get("fetched"),
                "uptime_s": int(time.monotonic() - self._begun_s),
            }
        )

    def get(self, rest: str) -> Response:
        """`POST /get/IMAGENAME/TAG/PATH`; *rest* is decoded too early to be of use."""
        digest = find_object(_raw_rest("/get/"), self._parts.resolve)
        found = self._find(digest, None)
        found.close()
        return reply({"cid": str(digest), "size_bytes": found.size_bytes})

    def download(self, name: str) -> Response:
        """`POST /download/OID` or `/download/CID`."""
        _check_asker()
        size_bytes = _size()
        by_oid = not name.startswith("sha256:")
        digest = self._parts.resolve(Digest.from_hex(name).hex) if by_oid else Digest.parse(name)
        self._enter(self._sending)
        try:
            found = self._find(digest, size_bytes, must_be_here="cached" in request.args)
        except BaseException:
            self._sending.leave()
            raise
        response = self._send(found)
        if by_oid:
            response.headers[CID_HEADER] = str(digest)
        return response

    def batch(self) -> Response:
        """`POST /batch`."""
        _check_asker()
        digests = parse_digests(request.stream.read(MAX_BODY_BYTES + 1))
        self._enter(self._sending)
        waits = any(not self._public.has(digest) for digest in digests)
        if waits:
            try:
                self._enter(self._waiting)
            except BaseException:
                self._sending.leave()
                raise
        batch = Batch(digests, self._public, self._getting if waits else None, self._limit)
        response = Response(batch.pieces(), content_type=OCTETS)

        @response.call_on_close
        def done() -> None:
            self._sending.leave()
            if waits:
                self._waiting.leave()
            self._counts.sent_objects.labels("batch").inc(batch.sent)
            self._counts.sent_bytes.labels("batch").inc(batch.sent_bytes)
            self._counts.absent_objects.inc(batch.absent)

        return response

    def upload(self, rest: str) -> Response:
        """`POST /upload/IMAGENAME/TAG`; *rest* as in `get`."""
        return reply(self._parts.uploads.start(parse_image(_raw_rest("/upload/"))), 202)

    def upload_progress(self, rest: str) -> Response:
        """`GET /upload/IMAGENAME/TAG`; *rest* as in `get`."""
        return reply(self._parts.uploads.progress(parse_image(_raw_rest("/upload/"))))

    def _enter(self, gate: Gate) -> None:
        try:
            gate.enter()
        except SourceUnavailable:
            self._counts.refused.labels("busy").inc()
            raise

    def _find(
        self, digest: Digest, size_bytes: int | None, *, must_be_here: bool = False
    ) -> OpenObject:
        """The object, from here or got now."""
        found = self._public.open(digest)
        if found is not None:
            return found
        if must_be_here:
            raise ContentNotFound(f"{digest} is not in this node's cache")
        self._enter(self._waiting)
        try:
            self._getting.wait(self._getting.start(digest, size_bytes))
        finally:
            self._waiting.leave()
        found = self._public.open(digest)
        if found is None:
            raise ContentNotFound(f"{digest} left this node's cache as it came; try again")
        return found

    def _send(self, found: OpenObject) -> Response:
        """An answer that gives up its place of `_sending`, and the file, when it is closed."""
        counted = self._counts

        def done() -> None:
            self._sending.leave()
            counted.sent_objects.labels("download").inc()
            counted.sent_bytes.labels("download").inc(found.size_bytes)

        found.when_closed = done
        size_bytes = piece_bytes(self._limit)
        if self._limit.bytes_s:
            response = Response(self._slowly(found, size_bytes))
            response.call_on_close(found.close)
        else:
            # gunicorn sends it with sendfile(2), except over TLS.
            wrapped = wrap_file(request.environ, found, size_bytes)  # type: ignore[arg-type]
            response = Response(wrapped, direct_passthrough=True)
        response.content_type = OCTETS
        response.content_length = found.size_bytes
        return response

    def _slowly(self, found: OpenObject, size_bytes: int) -> Any:
        for piece in found.pieces(size_bytes):
            self._limit.take(len(piece))
            yield piece


def _raw_rest(prefix: str) -> str:
    """What follows *prefix* in the URL as it was sent, without its query."""
    raw = str(request.environ["RAW_URI"])
    if not raw.startswith("/"):  # absolute form, RFC 9112, 3.2.2
        raw = "/" + raw.partition("://")[2].partition("/")[2]
    path = raw.partition("?")[0]
    if not path.startswith(prefix):
        raise BadRequest(f"{prefix} must be written as it is")
    return path.removeprefix(prefix)


def _check_asker() -> None:
    if (node := request.headers.get(NODE_HEADER)) is not None:
        parse_node(node)


def _size() -> int | None:
    """`?size=N`, what the asker knows of it; raises BadRequest."""
    text = request.args.get("size")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(f"size: not a number of bytes: {text[:40]!r}")
    return int(text)

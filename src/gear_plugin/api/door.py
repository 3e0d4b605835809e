"""
The door of :2019 and :2020: who may come in, and how they are told what went wrong.

Every call but `GET /healthz` wants the cluster's token.  Failures are
`{"error": <class name in gear_plugin.errors>, "message": <one line>}` with the
status of `STATUS`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from gear_plugin.cluster import Token
from gear_plugin.errors import (
    AccessDenied,
    BadInput,
    BadRequest,
    Conflict,
    Damaged,
    GearError,
    NotFound,
    StorageFull,
    TimedOut,
    Unavailable,
    Unsupported,
)

log = logging.getLogger(__name__)

STATUS: tuple[tuple[type[GearError], int], ...] = (
    (BadInput, 400),
    (AccessDenied, 401),
    (NotFound, 404),
    (Conflict, 409),
    (Damaged, 422),
    (Unsupported, 501),
    (TimedOut, 504),
    (StorageFull, 507),
    (Unavailable, 503),
    (GearError, 500),
)
"""The first row whose class fits decides."""

JSON = "application/json"
MAX_JSON_BYTES = 1 << 20
"""The largest body of a call that is not an object's content."""


def cluster_app(name: str, token: Callable[[], Token]) -> Flask:
    """
    A Flask app with `GET /healthz`; everything else wants *token*, asked for each request.

    Views raise GearError, and read their bodies with `body` (JSON, bounded)
    or from `request.stream`.
    """
    app = Flask(name, static_folder=None)
    app.register_error_handler(GearError, _gear_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _bug)

    @app.before_request
    def admit() -> None:
        if request.path != "/healthz":
            token().admit(request.headers.get("Authorization", ""))

    @app.get("/healthz")
    def healthz() -> Response:
        return reply({"ok": True})

    return app


def body() -> dict[str, Any]:
    """The request's JSON object, nothing counting as an empty one; raises BadRequest."""
    raw = request.stream.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise BadRequest(f"{request.path}: the body is longer than {MAX_JSON_BYTES} bytes")
    if not raw:
        return {}
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise BadRequest(f"{request.path}: the body is not JSON: {raw[:60]!r}") from error
    if not isinstance(found, dict):
        raise BadRequest(f"{request.path}: the body is not a JSON object")
    return found


def reply(answer: dict[str, Any], status: int = 200) -> Response:
    """A JSON answer."""
    return Response(json.dumps(answer) + "\n", status, content_type=JSON)


def _gear_error(error: GearError) -> Response:
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    level = logging.DEBUG if isinstance(error, NotFound) else logging.WARNING
    log.log(level, "%s from %s: %s", request.path, request.remote_addr, error)
    return reply({"error": type(error).__name__, "message": str(error)}, status)


def _http_error(error: HTTPException) -> Response:
    message = f"{request.method} {request.path}: {error.description}"
    return reply({"error": "BadRequest", "message": message}, error.code or 500)


def _bug(error: Exception) -> Response:
    log.error("a bug in %s", request.path, exc_info=error)
    answer = {"error": "GearError", "message": f"internal error: {type(error).__name__}"}
    return reply(answer, 500)

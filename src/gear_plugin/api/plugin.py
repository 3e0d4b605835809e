"""
The shell of a Docker plugin: activation, content type, and errors as docker
reads them (moby pkg/plugins; shapes observed against dockerd 20.10).

docker sends no Content-Type and, after a transport failure, repeats a call
with the body that it has already consumed: an empty one.  So bodies are
parsed whatever their type says, and one that is not a JSON object is refused
rather than taken for a call without arguments.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from gear_plugin.errors import (
    BadInput,
    BadRequest,
    Conflict,
    GearError,
    NotFound,
    Unavailable,
    Unsupported,
)

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/vnd.docker.plugins.v1.1+json"

_CHUNK_BYTES = 1 << 20

STATUS: tuple[tuple[type[GearError], int], ...] = (
    (BadInput, 400),
    (NotFound, 404),
    (Conflict, 409),
    (Unsupported, 501),
    (Unavailable, 503),
    (GearError, 500),
)
"""The first row whose class fits decides; docker shows the text of any status but 200."""

Answer = dict[str, Any]
Call = Callable[[Answer], Answer]


def plugin_app(implements: Sequence[str]) -> Flask:
    """A Flask app that answers Plugin.Activate, and turns every failure into `{"Err": ...}`."""
    app = Flask("gear-plugin", static_folder=None)
    app.register_error_handler(GearError, _gear_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _bug)

    @app.before_request
    def begin() -> None:
        g.begun = time.monotonic()

    @app.after_request
    def note(response: Response) -> Response:
        call, begun = request.path, g.begun
        response.call_on_close(lambda: log.debug("%s took %.3f s", call, time.monotonic() - begun))
        return response

    @app.post("/Plugin.Activate")
    def activate() -> Response:
        return reply({"Implements": list(implements)})

    return app


def add_call(app: Flask, name: str, call: Call) -> None:
    """Serve `POST /<name>`: JSON object in, JSON object out."""

    def view() -> Response:
        return reply(call(body()))

    app.add_url_rule(f"/{name}", name, view, methods=["POST"])


def body() -> Answer:
    """The request's JSON object; raises BadRequest for anything else, empty included."""
    raw = request.get_data()
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f"{request.path}: the body is not JSON ({raw[:60]!r}); "
            "docker sends an empty one when it repeats a call that failed"
        ) from error
    if not isinstance(message, dict):
        raise BadRequest(f"{request.path}: the body is not a JSON object")
    return message


def text(message: Answer, key: str, *, required: bool = False) -> str:
    """A string field; absent or null is empty, which *required* refuses (BadRequest)."""
    value = message.get(key) or ""
    if not isinstance(value, str):
        raise BadRequest(f"{request.path}: {key} must be a string, not {value!r:.60}")
    if required and not value:
        raise BadRequest(f"{request.path}: {key} is missing")
    return value


def reply(answer: Answer, status: int = 200) -> Response:
    """A JSON answer as docker expects it."""
    return Response(json.dumps(answer) + "\n", status, content_type=CONTENT_TYPE)


def _gear_error(error: GearError) -> Response:
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    log.warning("%s: %s", request.path, error)
    return _failure(str(error), status)


def _http_error(error: HTTPException) -> Response:
    return _failure(f"{request.path}: {error.description}", error.code or 500)


def _bug(error: Exception) -> Response:
    log.error("a bug in %s", request.path, exc_info=error)
    return _failure(f"internal error: {type(error).__name__}: {error}", 500)


def _failure(words: str, status: int) -> Response:
    """
    An answer that says what went wrong, once the body has been read to its end:
    a caller that is still sending it would see a broken pipe, and no answer.
    """
    with contextlib.suppress(Exception):  # the body may be what was wrong
        while request.stream.read(_CHUNK_BYTES):
            pass
    return reply({"Err": words}, status)

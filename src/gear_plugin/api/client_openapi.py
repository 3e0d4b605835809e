"""
The node's calls as OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0), for `GET /openapi.json`.

A test holds it to the app's routes; docs/http-api.md has examples.
"""

from __future__ import annotations

from typing import Any

from gear_plugin import __version__

_Json = dict[str, Any]


def document() -> _Json:
    """All calls of :2020."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gear node",
            "version": __version__,
            "description": "Every call but /healthz wants `Authorization: Bearer <token>`.",
        },
        "security": [{"token": []}],
        "paths": _PATHS,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _SCHEMAS,
        },
    }


def _object(properties: dict[str, _Json]) -> _Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT: _Json = {"type": "string"}
_COUNT: _Json = {"type": "integer", "minimum": 0}
_ANY: _Json = {"type": "object"}
_CID: _Json = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
_OCTETS: _Json = {"application/octet-stream": {}}

_SCHEMAS: dict[str, _Json] = {
    "Error": _object({"error": _TEXT, "message": _TEXT}),
    "Health": _object({"ok": {"type": "boolean"}}),
    "Info": _object(
        {
            "node": _TEXT,
            "cluster": _TEXT,
            "version": _TEXT,
            "address": _TEXT,
            "members_version": _COUNT,
            "cached": _object({"objects": _COUNT, "size_bytes": _COUNT, "limit_bytes": _COUNT}),
            "fetched": _ANY,
            "uptime_s": _COUNT,
        }
    ),
    "Fetched": _object({"cid": _CID, "size_bytes": _COUNT}),
    "Upload": _object(
        {
            "image": _TEXT,
            "state": {"enum": ["queued", "running", "done", "failed"]},
            "step": _TEXT,
            "result": _ANY,
            "error": _TEXT,
            "queued_s": _COUNT,
            "ended_s": {"type": ["integer", "null"]},
        }
    ),
}


def _json_of(name: str) -> _Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _call(
    summary: str,
    content: _Json,
    *errors: int,
    status: int = 200,
    is_open: bool = False,
    **more: Any,
) -> _Json:
    responses = {str(status): {"description": "as asked", "content": content}}
    for error in errors if is_open else (401, *errors):
        responses[str(error)] = {"description": _WHY[error], "content": _json_of("Error")}
    call: _Json = {"summary": summary, "responses": responses, **more}
    return {**call, "security": []} if is_open else call


_WHY = {
    400: "a name, id or body that does not parse",
    401: "no token, or a wrong one",
    404: "not there",
    413: "the body is too long",
    503: "busy, or a source does not answer; try again",
    504: "it did not come in time",
    507: "this node's disk is full",
}


def _in_path(name: str, text: str) -> _Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": text,
    }


_ASKER: _Json = {
    "name": "Gear-Node",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "description": "the node that asks",
}
_IMAGE = [_in_path("rest", "IMAGENAME/TAG; the name may contain slashes")]

_PATHS: dict[str, _Json] = {
    "/healthz": {"get": _call("Whether the port answers", _json_of("Health"), is_open=True)},
    "/info": {"get": _call("About this node", _json_of("Info"), 503, 504)},
    "/metrics": {"get": _call("Counters and gauges for Prometheus", {"text/plain": {}})},
    "/openapi.json": {"get": _call("This document", {"application/json": {}})},
    "/get/{rest}": {
        "post": _call(
            "Have the node download a file of an image",
            _json_of("Fetched"),
            *(400, 404, 503, 504, 507),
            parameters=[
                _in_path(
                    "rest",
                    "IMAGENAME/TAG/PATH; name and path may contain slashes, %2F is one that "
                    "does not separate",
                )
            ],
        )
    },
    "/download/{name}": {
        "post": _call(
            "The content of an object",
            _OCTETS,
            *(400, 404, 503, 504, 507),
            parameters=[
                _in_path("name", "an object id (64 hex digits) or a content id (sha256:...)"),
                {
                    "name": "size",
                    "in": "query",
                    "schema": _COUNT,
                    "description": "its size in bytes, if known",
                },
                _ASKER,
            ],
        )
    },
    "/batch": {
        "post": _call(
            "Many objects: a record each, of digest (32 bytes), size (8 bytes, big-endian; "
            "2**64-1: cannot be had) and content",
            _OCTETS,
            *(400, 413, 503),
            parameters=[_ASKER],
            requestBody={
                "required": True,
                "description": "1 to 4096 digests of 32 bytes, back to back",
                "content": _OCTETS,
            },
        )
    },
    "/upload/{rest}": {
        "post": _call(
            "Build and push a local image, in the background",
            _json_of("Upload"),
            *(400, 503),
            status=202,
            parameters=_IMAGE,
        ),
        "get": _call("How far that is", _json_of("Upload"), 400, 404, parameters=_IMAGE),
    },
}

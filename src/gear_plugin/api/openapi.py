"""
An app's calls as an OpenAPI 3.1 document, from a table that a test compares
with the routes the app really has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response

from gear_plugin import __version__
from gear_plugin.api.door import reply

Schema = dict[str, Any]

OCTETS: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
TEXT: Schema = {"type": "string", "contentMediaType": "text/plain"}
STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
NOTHING: Schema = {"type": "object"}

_FLASK_PART = re.compile(r"<(?:[a-z]+(?:\([^)]*\))?:)?([a-z_]+)>")
_TEMPLATE_PART = re.compile(r"\{([a-z_]+)\}")
_UNLISTED = frozenset(("HEAD", "OPTIONS"))
_ERROR: Schema = {
    "type": "object",
    "required": ["error", "message"],
    "properties": {
        "error": {"type": "string", "description": "A class of gear_plugin.errors."},
        "message": {"type": "string", "description": "One line for people."},
    },
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an app."""

    method: str
    path: str
    """With its parts in braces: `/put/{oid}/{cid}`."""
    summary: str
    answer: Schema
    body: Schema | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    """What the parts of the path are, by name."""
    query: Mapping[str, tuple[Schema, str]] = field(default_factory=dict)
    """Schema and meaning of each parameter; all may be left out."""
    status: int = 200
    is_open: bool = False
    """Wants no token."""


def fields(**schemas: Schema) -> Schema:
    """An object with all of these fields."""
    return {"type": "object", "required": list(schemas), "properties": schemas}


def many(schema: Schema) -> Schema:
    """A list of such."""
    return {"type": "array", "items": schema}


def document(title: str, calls: Sequence[Call]) -> dict[str, Any]:
    """The document that describes *calls*."""
    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The cluster's token, as `gear token` prints it.",
                }
            },
        },
    }


def add_document(app: Flask, title: str, calls: Sequence[Call]) -> None:
    """Serve the document of *calls*, and of this call itself, at `GET /openapi.json`."""
    itself = Call("GET", "/openapi.json", "This document.", NOTHING)
    described = document(title, [*calls, itself])

    @app.get("/openapi.json")
    def openapi() -> Response:
        return reply(described)


def routes(app: Flask) -> set[tuple[str, str]]:
    """Method and path, as a document writes it, of every call that *app* really has."""
    return {
        (method, _FLASK_PART.sub(r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - _UNLISTED
    }


def _operation(call: Call) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": call.summary,
        "parameters": _parameters(call),
        "responses": {
            str(call.status): {"description": "Done.", "content": _content(call.answer)},
            "default": {
                "description": "It failed.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if call.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(call.body)}
    if call.is_open:
        operation["security"] = []
    return operation


def _parameters(call: Call) -> list[dict[str, Any]]:
    parts = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": call.parts[name],
            "schema": STRING,
        }
        for name in _TEMPLATE_PART.findall(call.path)
    ]
    query = [
        {"name": name, "in": "query", "required": False, "description": meaning, "schema": schema}
        for name, (schema, meaning) in call.query.items()
    ]
    return parts + query


def _content(schema: Schema) -> dict[str, Any]:
    media = schema.get("contentMediaType", "application/json")
    return {media: {"schema": schema}}

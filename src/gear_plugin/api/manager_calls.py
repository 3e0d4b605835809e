"""
The manager's calls, as its OpenAPI document describes them.
"""

from __future__ import annotations

from gear_plugin.api.openapi import (
    BOOLEAN,
    INTEGER,
    NOTHING,
    NUMBER,
    OCTETS,
    STRING,
    TEXT,
    Call,
    fields,
    many,
)

TITLE = "Gear manager"

_NODES = {
    "version": INTEGER,
    "nodes": many(fields(node=STRING, address=STRING, is_live=BOOLEAN)),
}
_SETTINGS = fields(store=STRING, catalog=STRING)
_OID = "An object id: 64 hex digits, the SHA-256 of IMAGENAME:TAG/PATH."

CALLS = (
    Call("GET", "/healthz", "Whether the manager runs.", fields(ok=BOOLEAN), is_open=True),
    Call("GET", "/metrics", "For Prometheus.", TEXT),
    Call(
        "POST",
        "/join",
        "Have a node in the cluster; safe to repeat.",
        fields(
            cluster=STRING,
            node=STRING,
            address=STRING,
            settings=_SETTINGS,
            **_NODES,
        ),
        body=fields(node=STRING, address=STRING, version=STRING),
    ),
    Call("POST", "/leave", "Take a node off the list.", NOTHING, body=fields(node=STRING)),
    Call(
        "GET",
        "/nodes",
        "The nodes, at once or as soon as there is news.",
        fields(**_NODES),
        query={
            "version": (INTEGER, "The version that the caller knows."),
            "wait": (NUMBER, "How long to wait for another one, seconds, 30 at most."),
        },
    ),
    Call(
        "GET",
        "/settings",
        "What the cluster gives to its nodes.",
        fields(cluster=STRING, settings=_SETTINGS),
    ),
    Call(
        "POST",
        "/put/{oid}/{cid}",
        "Upload an object; the content is verified.",
        fields(cid=STRING, is_new=BOOLEAN),
        body=OCTETS,
        parts={"oid": _OID, "cid": "The content id, sha256:<64 hex digits>."},
    ),
    Call(
        "POST",
        "/get/{name}",
        "The content of an object, which the caller verifies.",
        OCTETS,
        parts={"name": f"{_OID} Or a content id, sha256:<64 hex digits>."},
    ),
)

"""What :2020 answers, for `GET /openapi.json`; docs/http-api.md has examples."""

from __future__ import annotations

from gear_plugin.api.openapi import (
    BOOLEAN,
    INTEGER,
    NOTHING,
    OCTETS,
    STRING,
    TEXT,
    Call,
    Schema,
    fields,
)

TITLE = "Gear node"

_IMAGE = {"rest": "IMAGENAME/TAG; the name may contain slashes."}
_UPLOAD = fields(
    image=STRING,
    state={"enum": ["queued", "running", "done", "failed"]},
    step={"type": "string", "description": "What it does now, one line."},
    result={"type": "object", "description": "What `gear build` and `gear push` print as JSON."},
    error={"type": "string", "description": "Why it failed; empty: it did not."},
    queued_s={"type": "integer", "description": "When it was asked for, Unix time."},
    ended_s={"type": ["integer", "null"]},
)
_RECORDS: Schema = {
    **OCTETS,
    "description": "A record an object, in the order asked: its digest (32 bytes), its size "
    "(8 bytes, big-endian), its content.  Size 2**64-1: cannot be had, no content follows.",
}

CALLS = (
    Call("GET", "/healthz", "Whether the port answers.", fields(ok=BOOLEAN), is_open=True),
    Call("GET", "/metrics", "Counts, in Prometheus' text format.", TEXT),
    Call(
        "GET",
        "/info",
        "About this node.",
        fields(
            node=STRING,
            cluster=STRING,
            version={"type": "string", "description": "Of Gear."},
            address=STRING,
            members_version={"type": ["integer", "null"]},
            cached=fields(objects=INTEGER, size_bytes=INTEGER, limit_bytes=INTEGER),
            fetched=NOTHING,
            uptime_s={"type": "integer", "description": "Of the port's process."},
        ),
    ),
    Call(
        "POST",
        "/get/{rest}",
        "Have the node download a file of an image that was pushed.",
        fields(cid=STRING, size_bytes=INTEGER),
        parts={
            "rest": "IMAGENAME/TAG/PATH; name and path may contain slashes, "
            "%2F is one that does not separate."
        },
    ),
    Call(
        "POST",
        "/download/{name}",
        "The content of an object; `Gear-Cid` says its id when it was asked for by an object id.",
        OCTETS,
        parts={"name": "An object id (64 hex digits) or a content id (sha256:HEX)."},
        query={
            "size": (INTEGER, "Its size in bytes, as far as the caller knows."),
            "cached": (BOOLEAN, "Whatever its value: only if the node has it already."),
        },
    ),
    Call(
        "POST",
        "/batch",
        "Many objects in one stream.",
        _RECORDS,
        body={**OCTETS, "description": "1 to 4096 digests of 32 bytes, back to back."},
    ),
    Call(
        "POST",
        "/upload/{rest}",
        "Build and push a local image in the background; the job under way if there is one.",
        _UPLOAD,
        parts=_IMAGE,
        status=202,
    ),
    Call("GET", "/upload/{rest}", "How far that is.", _UPLOAD, parts=_IMAGE),
)

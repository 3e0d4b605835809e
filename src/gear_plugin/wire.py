"""
The shapes that cross process borders on one node.

The local socket (`<run>/client.sock`) speaks one JSON object a line each
way, one request at a time on a connection; a caller keeps its connection.
Requests carry `op` and the fields below; answers are `{"ok": true, ...}` or
`{"ok": false, "error": <class name in gear_plugin.errors>, "message": <one line>}`.

fetch     image, object (64 hex each): the object is now in `public/` and
          linked into `private/<image>/`
admit     image: it is about to be mounted; make its private folder, and fetch ahead
          what earlier starts wanted
complete  image: start fetching all that it still lacks, in the background
forget    image: it left this node; its private folder goes
obtain    object, size (absent: not known): the object is now in `public/`, for another
          node: from the store or the manager, pinned for no image
cluster   answers with `node`, `cluster`, `address` and `members` (`version`, `nodes`), and
          for people with `manager`, `trouble` (why it does not answer; empty: it does)
          and `settings`; NotFound: this node is on its own
leave     the manager takes this node off its list; the next start joins again
status    answers with counts: objects and bytes cached, fetched, failed, and
          the images being completed

`image` is the SHA-256 of the image's `index.erofs`, which keys everything on
a node.  Lines are UTF-8 and at most 64 KiB.
"""

from __future__ import annotations

import json
from typing import Any

from gear_plugin import errors
from gear_plugin.errors import BadRequest, GearError

MAX_LINE_BYTES = 64 * 1024


def encode(message: dict[str, Any]) -> bytes:
    """One line, newline included."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message of one whole line; raises BadRequest."""
    try:
        message = json.loads(line)
    except ValueError as error:
        raise BadRequest(f"not JSON: {line[:100]!r}") from error
    if not isinstance(message, dict):
        raise BadRequest(f"not a JSON object: {line[:100]!r}")
    return message


def failure(error: GearError) -> dict[str, Any]:
    """The answer that carries *error* to the other side."""
    return {"ok": False, "error": type(error).__name__, "message": str(error)}


def raise_failure(answer: dict[str, Any]) -> None:
    """Raise what *answer* carries, as the class it names; returns if it says ok."""
    if answer.get("ok") is True:
        return
    found = getattr(errors, str(answer.get("error")), GearError)
    kind = found if isinstance(found, type) and issubclass(found, GearError) else GearError
    raise kind(str(answer.get("message", "no reason given")))

"""
`IMAGENAME/TAG/PATH` in a URL, where the name and the path may contain slashes.

Segments are split at the slashes of the URL as it was sent and percent-decoded
after, so `%2F` is a slash that does not split.  Where the name ends is not said:
every way to read it is a candidate, whose object id the catalog knows or
not.  Two ways can both be known only when one image's name and tag begin like
another's; `%2F` for the slashes of the name, or of the path, leaves one way.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote, unquote_to_bytes

from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import BadName, BadRequest, ContentNotFound
from gear_plugin.names import ImageId

_MAX_WAYS = 16
"""A name of more parts than this is none that a registry has."""


def find_object(rest: str, resolve: Callable[[str], Digest]) -> Digest:
    """
    The content at *rest*, the part of the URL behind `/get/`, not decoded.

    *resolve* gives an object id's content, or raises ContentNotFound.  Raises
    ContentNotFound, BadRequest, and what *resolve* does.
    """
    found: dict[Digest, str] = {}
    ways = _ways(rest)
    for image, path in ways:
        try:
            digest = resolve(object_id(str(image), path))
        except ContentNotFound:
            continue
        found.setdefault(digest, f"{image}/{path.decode(errors='replace')}")
    if len(found) > 1:
        raise BadRequest(
            f"/get: {' and '.join(found.values())} are both there; "
            "write the slashes inside the image's name as %2F"
        )
    for digest in found:
        return digest
    read_as = ", ".join(
        f"{image}/{path.decode(errors='replace')[:100]}" for image, path in ways[:4]
    )
    raise ContentNotFound(f"no image that was pushed has that file (read as {read_as})")


def parse_image(rest: str) -> ImageId:
    """The image of `IMAGENAME/TAG`, the part of the URL behind `/upload/`; raises BadName."""
    name, _, tag = rest.rpartition("/")
    return _image(name, tag)


def _image(name: str, tag: str) -> ImageId:
    image = ImageId.parse(f"{unquote(name)}:{unquote(tag)}")
    if image.tag != unquote(tag):  # a slash or colon in it made it part of the name
        raise BadName(f"not a tag: {unquote(tag)[:100]!r}")
    return image


def _ways(rest: str) -> list[tuple[ImageId, bytes]]:
    """Every way to read *rest*, longest name first; at least one, or BadRequest."""
    parts = rest.split("/")
    found = []
    for count in range(min(len(parts) - 2, _MAX_WAYS), 0, -1):
        name, tag = "/".join(parts[:count]), parts[count]
        path = unquote_to_bytes("/".join(parts[count + 1 :])).lstrip(b"/")
        try:
            image = _image(name, tag)
        except BadName:
            continue
        if path:
            found.append((image, path))
    if not found:
        raise BadRequest(f"/get: not IMAGENAME/TAG/PATH: {rest[:200]!r}")
    return found

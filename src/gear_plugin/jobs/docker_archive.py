"""
The archive that `docker save` writes, by its `manifest.json`.

Engines before 25 write `<id>/layer.tar` (equal layers as symlinks), later ones
`blobs/sha256/`, others (podman, skopeo, kaniko, Bazel) names of their own.
Source: moby image/tarexport/load.go (v20.10.24).
"""

from __future__ import annotations

import json
from typing import Any

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed, ImageNotFound, Unsupported
from gear_plugin.jobs import oci
from gear_plugin.jobs.bundle import Bundle, PackedImage, need
from gear_plugin.jobs.references import Wish, same_image

_LISTING = "manifest.json"


def read(bundle: Bundle, wish: Wish) -> PackedImage:
    """
    The image that *wish* names; the only one, whatever its name is.

    Raises ImageNotFound, Unsupported (foreign layers, an image of 2015),
    ArchiveMalformed.
    """
    what = wish.place
    if bundle.find(_LISTING) is None and bundle.find("repositories") is not None:
        raise Unsupported(f"{what} was saved by a Docker before 1.10; load it and save it again")
    try:
        listing = json.loads(need(bundle, _LISTING, what).content(oci.MAX_MANIFEST_BYTES))
        entry = _pick(listing, wish)
        raw = need(bundle, str(entry["Config"]), what).content(oci.MAX_CONFIG_BYTES)
        blobs = [need(bundle, str(name), what) for name in entry["Layers"] or []]
        foreign = bool(entry.get("LayerSources"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveMalformed(
            f"{what}: its {_LISTING} is not understood: {str(error)[:200]}"
        ) from error
    if foreign:
        raise Unsupported(f"{what} has foreign layers, which no archive may carry")
    return PackedImage(oci.parse(raw, what), Digest.of(raw), blobs)


def _pick(listing: Any, wish: Wish) -> dict[str, Any]:
    if not isinstance(listing, list) or not listing:
        raise ValueError("it lists no images")
    names: list[str] = []
    for entry in listing:
        tags = [str(tag) for tag in entry.get("RepoTags") or []]
        if any(same_image(tag, wish.image) for tag in tags):
            return dict(entry)
        names += tags
    if len(listing) == 1:
        return dict(listing[0])
    raise ImageNotFound(
        f"{wish.place} holds {len(listing)} images, and not {wish.image or 'one alone'}; "
        f"it has: {', '.join(sorted(names))[:500] or 'none with a name'}"
    )

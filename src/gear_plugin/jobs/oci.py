"""
What registries, OCI layouts and archives say about an image: indexes and manifests.

Sources: OCI image-spec v1.1 (manifest.md, image-index.md, descriptor.md,
media-types.md); distribution's manifest-v2-2.md; ocicrypt for encrypted
layers.  Pure: callers bring the bytes.  Nothing here is trusted: whoever reads
a descriptor's content checks it against the digest and the size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed, BadDigest, ImageNotFound, Unsupported
from gear_plugin.jobs.platforms import Platform, choose

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
INDEXES = (OCI_INDEX, DOCKER_LIST)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)

MAX_MANIFEST_BYTES = 4 << 20
"""As distribution's registry (registry/handlers/manifests.go, maxManifestBodySize)."""
MAX_CONFIG_BYTES = 16 << 20
_MAX_INDEXES = 4
"""An index in an index in an index: no tool writes more than two."""

_CONFIGS = (DOCKER_CONFIG, "application/vnd.oci.image.config.v1+json")
_LAYERS = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
)
_COMPRESSIONS = ("", "+gzip", "+zstd", ".gzip", ".zstd")
_REFERENCE_TYPE = "vnd.docker.reference.type"
"""BuildKit hangs attestations onto an index as manifests with this annotation."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest or an index says about another blob."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, found: Any, what: str) -> Descriptor:
        """Raises ArchiveMalformed; Unsupported for another hash than SHA-256."""
        try:
            text, size = str(found["digest"]), found["size"]
            annotations = found.get("annotations") or {}
            if type(size) is not int or size < 0 or not isinstance(annotations, dict):
                raise ValueError(f"a wrong size or annotation of {text[:100]}")
            if text.startswith("sha512:"):
                raise Unsupported(f"{what} uses {text[:100]}; Gear knows SHA-256 alone")
            return cls(
                str(found.get("mediaType") or ""),
                Digest.parse(text),
                size,
                Platform.from_json(found.get("platform")),
                {str(key): str(value) for key, value in annotations.items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, BadDigest) as error:
            raise ArchiveMalformed(f"{what}: a malformed descriptor: {str(error)[:200]}") from error


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """One platform's image: its configuration, and its layers from the lowest up."""

    digest: Digest
    config: Descriptor
    layers: tuple[Descriptor, ...]


Reader = Callable[[Descriptor], bytes]
"""Gives a descriptor's content, checked against its digest; small blobs only."""


def resolve(
    top: Descriptor, read: Reader, wanted: Callable[[], Platform], what: str
) -> ImageManifest:
    """
    The manifest that *top* is, or leads to for the platform *wanted*.

    *wanted* is asked only when there is a choice; *what* names the image in
    errors.  Raises ImageNotFound (no such platform), ArchiveMalformed,
    Unsupported (no image at all, foreign or encrypted layers).
    """
    for _ in range(_MAX_INDEXES):
        body = parse(read(top), what)
        kind = body.get("mediaType") or top.media_type
        if kind in MANIFESTS or (kind not in INDEXES and "config" in body):
            return _manifest(top.digest, body, what)
        if kind not in INDEXES and "manifests" not in body:
            raise Unsupported(_no_image(body, str(kind), what))
        top = pick(index_entries(body, what), wanted, what)
    raise ArchiveMalformed(f"{what}: an index in an index in an index")


def index_entries(body: Mapping[str, Any], what: str) -> list[Descriptor]:
    """What an index lists, attestations left out."""
    found = body.get("manifests")
    if not isinstance(found, list):
        raise ArchiveMalformed(f"{what}: an index without a list of manifests")
    entries = [Descriptor.from_json(entry, what) for entry in found]
    return [entry for entry in entries if _REFERENCE_TYPE not in entry.annotations]


def pick(entries: list[Descriptor], wanted: Callable[[], Platform], what: str) -> Descriptor:
    """The one of *entries* that is for the platform *wanted*; the only one, if it says nothing."""
    if len(entries) == 1 and entries[0].platform is None:
        return entries[0]
    known = [(entry, entry.platform) for entry in entries if entry.platform is not None]
    platform = wanted()
    place = choose(platform, [found for _, found in known])
    if place is None:
        offered = ", ".join(sorted({str(found) for _, found in known})) or "none"
        raise ImageNotFound(f"{what} has nothing for {platform} (--platform); it has: {offered}")
    return known[place][0]


def parse(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object; raises ArchiveMalformed."""
    try:
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise ArchiveMalformed(f"{what}: not understood as JSON: {str(error)[:200]}") from error
    return found


def diff_ids(config: Mapping[str, Any], layers: int, what: str) -> list[Digest]:
    """The digests of the uncompressed layers; raises ArchiveMalformed if they are not so many."""
    try:
        found = [Digest.parse(str(text)) for text in config["rootfs"]["diff_ids"] or []]
    except (KeyError, TypeError, BadDigest) as error:
        raise ArchiveMalformed(f"{what}: a configuration without proper diff_ids") from error
    if len(found) != layers:
        raise ArchiveMalformed(f"{what}: {layers} layers, but {len(found)} diff_ids")
    return found


def _manifest(digest: Digest, body: Mapping[str, Any], what: str) -> ImageManifest:
    layers = body.get("layers") or []
    if not isinstance(layers, list):
        raise ArchiveMalformed(f"{what}: a manifest without a list of layers")
    config = Descriptor.from_json(body.get("config"), what)
    if config.media_type not in _CONFIGS:
        raise Unsupported(_no_image(body, config.media_type, what))
    found = tuple(Descriptor.from_json(layer, what) for layer in layers)
    for layer in found:
        _check_layer(layer, what)
    return ImageManifest(digest, config, found)


def _check_layer(layer: Descriptor, what: str) -> None:
    kind = layer.media_type
    if "encrypted" in kind:
        raise Unsupported(
            f"{what} has an encrypted layer ({layer.digest}); decrypt the image first, "
            "for example with `skopeo copy --decryption-key`"
        )
    if "foreign" in kind or "nondistributable" in kind:
        raise Unsupported(
            f"{what} has a foreign layer ({layer.digest}), which no registry may hand out"
        )
    if not any(kind == base + packed for base in _LAYERS for packed in _COMPRESSIONS):
        raise Unsupported(f"{what} has a layer of an unknown kind, {kind[:100]!r}")


def _no_image(body: Mapping[str, Any], kind: str, what: str) -> str:
    if body.get("schemaVersion") == 1:
        return f"{what} is in the format of 2015 (schema 1); pull it with docker and push it again"
    kind = str(body.get("artifactType") or kind)
    return f"{what} is no container image but {kind[:100] or 'something else'!r}"

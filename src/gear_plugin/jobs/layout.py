"""
An OCI image layout, as a folder or a tar, by its `index.json`.

Written by skopeo, BuildKit, podman, containerd, and docker 25 and later beside
its own form.  Source: OCI image-spec v1.1, image-layout.md; the names that
containerd writes: core/images/archive/exporter.go (v2.0).
"""

from __future__ import annotations

from gear_plugin.digest import Digest
from gear_plugin.errors import ContentCorrupt, ImageNotFound
from gear_plugin.jobs import oci
from gear_plugin.jobs.bundle import Bundle, PackedImage, need
from gear_plugin.jobs.references import Wish, same_image
from gear_plugin.names import ImageId

MARK = "oci-layout"
_FULL_NAME = "io.containerd.image.name"
_NAME = "org.opencontainers.image.ref.name"


def read(bundle: Bundle, wish: Wish) -> PackedImage:
    """
    The image that *wish* names; the only one, whatever its name is.

    What describes it is checked against its digests; the layers are not.
    Raises ImageNotFound (no such name or platform), Unsupported,
    ArchiveMalformed, ContentCorrupt.
    """
    what = wish.place

    def content(blob: oci.Descriptor, limit: int = oci.MAX_MANIFEST_BYTES) -> bytes:
        data = need(bundle, _path(blob), what).content(limit)
        if Digest.of(data) != blob.digest:
            raise ContentCorrupt(f"{what} is damaged: a blob is not {blob.digest}")
        return data

    index = need(bundle, "index.json", what).content(oci.MAX_MANIFEST_BYTES)
    entries = oci.index_entries(oci.parse(index, what), what)
    top = oci.pick(_named(entries, wish), wish.platform, what)
    manifest = oci.resolve(top, content, wish.platform, what)
    config = content(manifest.config, oci.MAX_CONFIG_BYTES)
    blobs = [need(bundle, _path(layer), what) for layer in manifest.layers]
    return PackedImage(oci.parse(config, what), manifest.config.digest, blobs)


def _path(blob: oci.Descriptor) -> str:
    return f"blobs/sha256/{blob.digest.hex}"


def _named(entries: list[oci.Descriptor], wish: Wish) -> list[oci.Descriptor]:
    """The entries that can be the image: one, or one a platform."""
    found = [entry for entry in entries if _is_named(entry, wish.image)] or entries
    distinct = list({entry.digest: entry for entry in found}.values())
    names = {_name(entry) for entry in distinct}
    if not distinct or len(names) > 1:
        raise ImageNotFound(
            f"{wish.place} holds {len(distinct)} images, and not {wish.image or 'one alone'}; "
            f"it has: {', '.join(sorted(filter(None, names)))[:500] or 'none with a name'}"
        )
    return distinct


def _name(entry: oci.Descriptor) -> str:
    return entry.annotations.get(_FULL_NAME) or entry.annotations.get(_NAME, "")


def _is_named(entry: oci.Descriptor, image: ImageId | None) -> bool:
    """By its whole name; or by its tag, where the layout itself stands for the name."""
    name = _name(entry)
    return same_image(name, image) or (image is not None and name == image.tag)

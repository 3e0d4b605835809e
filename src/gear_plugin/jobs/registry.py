"""
Images in registries, without an engine: read, fetch, and push.

The protocol is OCI distribution-spec v1.1 (which is Docker's registry API v2).
Nothing that a registry sends is trusted: manifests, configurations and blobs
are checked against their digests and sizes, and a blob whose transfer breaks
is taken up again where it broke.  Safe from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlencode, urlsplit

from gear_plugin.digest import Digest
from gear_plugin.errors import ContentCorrupt, ImageNotFound, Unsupported
from gear_plugin.jobs import oci, unpack
from gear_plugin.jobs.platforms import Platform
from gear_plugin.jobs.references import Reference
from gear_plugin.jobs.registry_blob import BlobReader, pull_scope
from gear_plugin.jobs.registry_http import Http
from gear_plugin.jobs.registry_pools import RegistrySettings
from gear_plugin.names import ImageId

_ACCEPTED = ", ".join((*oci.MANIFESTS, *oci.INDEXES))
_OCTETS = {"Content-Type": "application/octet-stream"}


class Registry:
    """Every registry that can be reached; logins are asked for when one wants them."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._http = Http(settings)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def stop(self) -> None:
        """Make all requests under way fail at once; for an interrupt."""
        self._http.stop()

    def manifest(
        self, image: Reference, wanted: Callable[[], Platform] = Platform.of_machine
    ) -> oci.ImageManifest:
        """
        The manifest of *image*; of its variant for *wanted*, if it has several.

        Raises ImageNotFound (no such image or platform), AccessDenied,
        SourceUnavailable, ContentCorrupt, ArchiveMalformed, Unsupported.
        """
        raw, kind = self._manifest(image, image.version)
        top = oci.Descriptor(kind, image.digest or Digest.of(raw), len(raw))
        known = {top.digest: raw}

        def read(blob: oci.Descriptor) -> bytes:
            if blob.digest not in known:
                known[blob.digest], _ = self._manifest(image, str(blob.digest))
            if Digest.of(known[blob.digest]) != blob.digest:
                raise ContentCorrupt(f"{image.host} sent another manifest than {blob.digest}")
            return known[blob.digest]

        return oci.resolve(top, read, wanted, str(image))

    def small_blob(self, image: Reference, blob: oci.Descriptor, limit: int) -> bytes:
        """A blob of at most *limit* bytes, checked.  Raises as `open_blob`."""
        if blob.size > limit:
            raise Unsupported(f"{image}: a blob of {blob.size} bytes; the limit is {limit}")
        with self.open_blob(image, blob) as reader:
            parts = []
            while part := reader.read(limit):
                parts.append(part)
        return b"".join(parts)

    def open_blob(self, image: Reference, blob: oci.Descriptor) -> BlobReader:
        """
        Read a blob of *image*'s repository.

        Reading raises ContentNotFound, ContentCorrupt (not the digest or the
        size), SourceUnavailable (after several attempts), AccessDenied.
        """
        return BlobReader(self._http, image, blob)

    def fetch_index_layer(self, image: ImageId, target: Path) -> None:
        """
        Write the one layer of the Gear image *image* to *target*, as a plain tar.

        What is in the tar is not looked at: it is exactly what its digest says,
        which the registry may have chosen.  When it raises, *target* is not there.

        Raises Unsupported (not one layer: no Gear image), what `manifest` and
        `open_blob` raise, OSErrors of *target* as they are.
        """
        reference = Reference.of(image)
        manifest = self.manifest(reference)
        if len(manifest.layers) != 1:
            raise Unsupported(
                f"{image} is no Gear image: it has {len(manifest.layers)} layers, not one"
            )
        config = oci.parse(
            self.small_blob(reference, manifest.config, oci.MAX_CONFIG_BYTES), str(image)
        )
        (diff_id,) = oci.diff_ids(config, 1, str(image))
        try:
            self.fetch_layer(reference, manifest.layers[0], diff_id, target, lambda _: None)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def fetch_layer(
        self,
        image: Reference,
        layer: oci.Descriptor,
        diff_id: Digest,
        target: Path,
        advance: Callable[[int], None],
    ) -> None:
        """Write a layer's plain tar to *target*, checked on both sides of its compression."""
        what = f"the layer {layer.digest} of {image}"
        with self.open_blob(image, layer) as reader:

            def read(count: int) -> bytes:
                piece = reader.read(count)
                advance(len(piece))
                return piece

            unpack.store(unpack.plain(read, what), target, diff_id, what)
            while read(unpack.PIECE_BYTES):
                pass  # to its end, where the blob's own digest is checked

    def push_blob(self, image: Reference, digest: Digest, blob: BinaryIO, size: int) -> bool:
        """
        Have the blob in *image*'s repository; whether it had to be sent.

        Raises SourceUnavailable, AccessDenied.
        """
        place, scope = f"/v2/{image.repository}/blobs/", _push_scope(image)
        head = self._http.request("HEAD", image.host, f"{place}{digest}", scope=scope)
        self._http.finish(head)
        if head.status == 200:
            return False
        # As a whole: what is left of a broken upload cannot be relied on.
        self._http.repeated(image.host, lambda: self._upload(image, digest, blob, size))
        return True

    def _upload(self, image: Reference, digest: Digest, blob: BinaryIO, size: int) -> None:
        host, scope, doing = image.host, _push_scope(image), f"to take a blob of {image}"
        place = f"/v2/{image.repository}/blobs/uploads/"
        begun = self._http.request("POST", host, place, scope=scope, body=b"", repeat=False)
        location = begun.headers.get("Location", "")
        if begun.status != 202 or not location:
            raise self._http.failed(begun, host, doing)
        self._http.finish(begun)
        url = location + ("&" if urlsplit(location).query else "?")
        sent = self._http.request(
            "PUT",
            host,
            url + urlencode({"digest": str(digest)}),
            scope=scope,
            headers=_OCTETS | {"Content-Length": str(size)},
            body=blob,
            repeat=False,
        )
        if sent.status != 201:
            raise self._http.failed(sent, host, doing)
        self._http.finish(sent)

    def push_manifest(self, image: Reference, manifest: bytes, kind: str) -> None:
        """Give *image* its meaning; its blobs must be there.  Raises as `push_blob`."""
        done = self._http.request(
            "PUT",
            image.host,
            f"/v2/{image.repository}/manifests/{image.version}",
            scope=_push_scope(image),
            headers={"Content-Type": kind},
            body=manifest,
        )
        if done.status not in (200, 201):
            raise self._http.failed(done, image.host, f"to take {image}")
        self._http.finish(done)

    def _manifest(self, image: Reference, version: str) -> tuple[bytes, str]:
        """A manifest's bytes and media type."""
        response = self._http.request(
            "GET",
            image.host,
            f"/v2/{image.repository}/manifests/{version}",
            scope=pull_scope(image),
            headers={"Accept": _ACCEPTED},
        )
        if response.status == 404:
            self._http.finish(response)
            raise ImageNotFound(f"the registry {image.host} has no {image}")
        if response.status != 200:
            raise self._http.failed(response, image.host, f"to give {image}")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
        raw = self._http.body(response, image.host, oci.MAX_MANIFEST_BYTES)
        return raw, kind


def _push_scope(image: Reference) -> str:
    return f"repository:{image.repository}:pull,push"

"""OCI image layouts as skopeo, BuildKit and docker write them, made by hand."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": zstandard.ZstdCompressor().compress,
}
_SUFFIXES = {"plain": "", "gzip": "+gzip", "zstd": "+zstd"}


def config_bytes(layers: Sequence[bytes], config: Mapping[str, Any]) -> bytes:
    """The configuration as an engine keeps it, with the layers' digests."""
    diff_ids = [digest(layer) for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    history = [{"created_by": f"step {number}"} for number in range(len(layers))]
    return json.dumps({**config, "rootfs": rootfs, "history": history}).encode()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


@dataclass
class Image:
    """One image for one platform; *name* is what the layout calls it."""

    name: str
    layers: Sequence[bytes]
    config: Mapping[str, Any]
    compression: str = "plain"
    layer_type: str = ""
    config_type: str = CONFIG_TYPE
    manifest_type: str = MANIFEST
    manifest_fields: dict[str, Any] = field(default_factory=dict)

    @property
    def blobs(self) -> list[bytes]:
        """The layers as they lie there."""
        return [COMPRESS[self.compression](layer) for layer in self.layers]

    @property
    def raw_config(self) -> bytes:
        return config_bytes(self.layers, self.config)

    @property
    def manifest(self) -> bytes:
        kind = self.layer_type or LAYER + _SUFFIXES[self.compression]
        body = {
            "schemaVersion": 2,
            "mediaType": self.manifest_type,
            "config": descriptor(self.raw_config, self.config_type),
            "layers": [descriptor(blob, kind) for blob in self.blobs],
            **self.manifest_fields,
        }
        return json.dumps(body).encode()

    @property
    def platform(self) -> dict[str, str]:
        keys = ("os", "architecture", "variant")
        return {key: self.config[key] for key in keys if key in self.config}

    @property
    def files(self) -> dict[str, bytes]:
        """All its blobs, by their place."""
        return {path_of(data): data for data in (self.manifest, self.raw_config, *self.blobs)}

    def entry(self, *, named: bool = True) -> dict[str, Any]:
        """Its line in an index."""
        annotations = {"org.opencontainers.image.ref.name": self.name} if named else {}
        return descriptor(
            self.manifest, self.manifest_type, platform=self.platform, annotations=annotations
        )


def path_of(data: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"


def index_bytes(*entries: dict[str, Any], media_type: str = INDEX) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "mediaType": media_type, "manifests": list(entries)}
    ).encode()


def layout(*images: Image, top: bytes | None = None) -> dict[str, bytes]:
    """A layout's files; *top* instead of the index.json that lists each image by name."""
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    for image in images:
        files |= image.files
    files["index.json"] = top or index_bytes(*(image.entry() for image in images))
    return files


def multi_platform(name: str, *images: Image) -> dict[str, bytes]:
    """A layout with one image for several platforms, as BuildKit nests it."""
    attestation = b'{"predicateType": "provenance"}'
    nested = index_bytes(
        *(image.entry(named=False) for image in images),
        descriptor(
            attestation,
            MANIFEST,
            platform={"os": "unknown", "architecture": "unknown"},
            annotations={"vnd.docker.reference.type": "attestation-manifest"},
        ),
    )
    annotations = {"org.opencontainers.image.ref.name": name}
    top = index_bytes(descriptor(nested, INDEX, annotations=annotations))
    return layout(*images, top=top) | {
        path_of(nested): nested,
        path_of(attestation): attestation,
    }


def as_tar(files: Mapping[str, bytes]) -> bytes:
    """The files as one archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            found = tarfile.TarInfo(name)
            found.size = len(data)
            archive.addfile(found, io.BytesIO(data))
    return out.getvalue()


def as_folder(files: Mapping[str, bytes], folder: Path) -> Path:
    """The files below *folder*."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder

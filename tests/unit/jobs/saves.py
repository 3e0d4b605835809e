"""`docker save` archives as engines write them, made with tarfile alone."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import zstandard

from tests.unit.image.tars import info, tar

CONFIG: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2026-03-01T12:00:00.123456789Z",
    "author": "somebody",
    "config": {
        "Env": ["PATH=/bin:/usr/bin", "GREETING=hällo <&>"],
        "Cmd": ["sh", "-c", "echo $GREETING"],
        "Entrypoint": None,
        "WorkingDir": "/srv/app",
        "User": "1000:1000",
        "Volumes": {"/data": {}},
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"a b": 'quoted "x"'},
        "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 30_000_000_000, "Retries": 2},
        "StopSignal": "SIGQUIT",
        "Shell": ["/bin/bash", "-c"],
        "OnBuild": ["RUN make"],
    },
}
"""A configuration with every field that a Gear image has to keep."""

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def file(name: str, content: bytes, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member for `tar`."""
    return info(name, **fields), content


def config_bytes(layers: Sequence[bytes], config: dict[str, Any]) -> bytes:
    """The configuration as the engine keeps it, with the layers' digests."""
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    history = [{"created_by": f"step {number}"} for number in range(len(layers))]
    return json.dumps({**config, "rootfs": rootfs, "history": history}).encode()


def saved_by_20(name: str, layers: Sequence[bytes], config: dict[str, Any] = CONFIG) -> bytes:
    """As Docker 20.10 writes it: a folder a layer, equal layers as symlinks."""
    raw = config_bytes(layers, config)
    members: list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]] = []
    names: list[str] = []
    written: dict[bytes, str] = {}
    for number, layer in enumerate(layers):
        folder = hashlib.sha256(b"%d" % number + layer).hexdigest()
        members += [info(f"{folder}/", type=tarfile.DIRTYPE), file(f"{folder}/VERSION", b"1.0")]
        path = f"{folder}/layer.tar"
        if layer in written:
            members.append(info(path, type=tarfile.SYMTYPE, linkname=f"../{written[layer]}"))
        else:
            members.append(file(path, layer))
            written[layer] = path
        names.append(path)
    config_name = f"{hashlib.sha256(raw).hexdigest()}.json"
    entry = {"Config": config_name, "RepoTags": [name], "Layers": names or None}
    members += [file(config_name, raw), file("manifest.json", json.dumps([entry]).encode())]
    return tar(*members, format=tarfile.PAX_FORMAT)


def saved_by_25(
    name: str,
    layers: Sequence[bytes],
    config: dict[str, Any] = CONFIG,
    *,
    compression: str = "plain",
) -> bytes:
    """As Docker 25 and later write it: an OCI layout with a manifest.json beside it."""
    raw = config_bytes(layers, config)
    blobs = {_blob(raw): raw}
    names = []
    for layer in layers:
        packed = COMPRESS[compression](layer)
        blobs[_blob(packed)] = packed
        names.append(_blob(packed))
    entry = {"Config": _blob(raw), "RepoTags": [name], "Layers": names}
    members = [file(path, content) for path, content in blobs.items()]
    members += [
        file("index.json", b"{}"),
        file("manifest.json", json.dumps([entry]).encode()),
        file("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
    ]
    return tar(*members)


def _blob(data: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"


def unpack(archive: bytes) -> dict[str, bytes]:
    """Every regular file of an archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        return {
            member.name: opened.read()
            for member in found
            if (opened := found.extractfile(member)) is not None
        }

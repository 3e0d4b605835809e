"""`docker save` archives as engines write them, made with tarfile alone."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any

from tests.unit.image.tars import info, tar
from tests.unit.jobs import layouts
from tests.unit.jobs.layouts import config_bytes

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


def file(name: str, content: bytes, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member for `tar`."""
    return info(name, **fields), content


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
    image = layouts.Image(name, layers, config, compression)
    names = [f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}" for blob in image.blobs]
    raw = config_bytes(layers, config)
    entry = {
        "Config": f"blobs/sha256/{hashlib.sha256(raw).hexdigest()}",
        "RepoTags": [name],
        "Layers": names,
    }
    files = layouts.layout(image) | {"manifest.json": json.dumps([entry]).encode()}
    return layouts.as_tar(files)


def unpack(archive: bytes) -> dict[str, bytes]:
    """Every regular file of an archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        return {
            member.name: opened.read()
            for member in found
            if (opened := found.extractfile(member)) is not None
        }

"""
The VolumeDriver plugin protocol over a VolumeStore.

Each call is one line of translation; what it means is `gear_plugin.layers`.
Shapes: moby volume/drivers/proxy.go and adapter.go (v20.10.24), docs.docker.com
"Docker volume plugins".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from flask import Flask, request

from gear_plugin.api.plugin import Answer, add_call, text
from gear_plugin.errors import BadConfig, BadRequest
from gear_plugin.layers import Showing, Volume
from gear_plugin.names import ImageId

INTERFACE = "VolumeDriver"

OPTIONS = ("image", "mode", "path")
"""What `docker volume create -o` may name."""

_MODES = {"ro": False, "rw": True}


class Volumes(Protocol):
    """What the protocol needs of a VolumeStore; each method's promise is there."""

    def create(self, name: str, showing: Showing | None) -> None: ...
    def remove(self, name: str) -> None: ...
    def mount(self, name: str, user: str) -> Path: ...
    def unmount(self, name: str, user: str) -> None: ...
    def get(self, name: str) -> Volume: ...
    def all(self) -> list[Volume]: ...


class VolumeDriver:
    """
    The calls.

    *volumes* may block until the store is ready (it is called for each request).
    """

    def __init__(self, volumes: Callable[[], Volumes]) -> None:
        self._volumes = volumes

    def serve_on(self, app: Flask) -> None:
        """Add every call to *app*."""
        calls: dict[str, Callable[[Answer], Answer]] = {
            "Capabilities": lambda _: {"Capabilities": {"Scope": "local"}},
            "Create": self._create,
            "Remove": self._remove,
            "Mount": self._mount,
            "Unmount": self._unmount,
            "Path": lambda message: _mountpoint(self._volumes().get(_name(message))),
            "Get": lambda message: {"Volume": _shown(self._volumes().get(_name(message)))},
            "List": lambda _: {"Volumes": [_listed(volume) for volume in self._volumes().all()]},
        }
        for name, call in calls.items():
            add_call(app, f"{INTERFACE}.{name}", call)

    def _create(self, message: Answer) -> Answer:
        self._volumes().create(_name(message), showing(_options(message)))
        return {}

    def _remove(self, message: Answer) -> Answer:
        self._volumes().remove(_name(message))
        return {}

    def _mount(self, message: Answer) -> Answer:
        path = self._volumes().mount(_name(message), text(message, "ID", required=True))
        return {"Mountpoint": str(path)}

    def _unmount(self, message: Answer) -> Answer:
        self._volumes().unmount(_name(message), text(message, "ID", required=True))
        return {}


def showing(options: Mapping[str, str]) -> Showing | None:
    """
    What the options of `docker volume create` ask for; None: an ordinary volume.

    Raises BadConfig (one line that names the option), BadName.
    """
    for name in options:
        if name not in OPTIONS:
            raise BadConfig(f"unknown volume option {name!r:.100}; known: {', '.join(OPTIONS)}")
    image, mode, path = (options.get(name, "") for name in OPTIONS)
    if not image:
        if options:
            raise BadConfig(
                "a volume with options needs image=NAME[:TAG], the Gear image that it shows"
            )
        return None
    if mode and mode not in _MODES:
        raise BadConfig(f"volume option mode: ro or rw, not {mode!r:.100}")
    if path and not path.startswith("/"):
        raise BadConfig(f"volume option path: not a path that begins with '/': {path!r:.100}")
    try:
        raw = os.fsencode(path or "/")
    except UnicodeEncodeError as error:
        raise BadConfig(f"volume option path: not a path: {path!r:.100}") from error
    if b"\0" in raw:
        raise BadConfig(f"volume option path: not a path: {path!r:.100}")
    asked = ImageId.parse(image)
    return Showing(asked if asked.is_gear else asked.gear, _MODES[mode or "ro"], raw)


def _name(message: Answer) -> str:
    return text(message, "Name", required=True)


def _options(message: Answer) -> dict[str, str]:
    options = message.get("Opts") or {}
    if not isinstance(options, dict) or not all(isinstance(o, str) for o in options.values()):
        raise BadRequest(f"{request.path}: Opts must be an object of strings")
    return options


def _mountpoint(volume: Volume) -> Answer:
    return {"Mountpoint": str(volume.mountpoint or "")}


def _listed(volume: Volume) -> Answer:
    return {"Name": volume.record.name, **_mountpoint(volume)}


def _shown(volume: Volume) -> Answer:
    """A volume as `docker volume inspect` shows it."""
    created = datetime.fromtimestamp(volume.record.created_s, UTC)
    return {
        **_listed(volume),
        "CreatedAt": created.isoformat().replace("+00:00", "Z"),
        "Status": _status(volume),
    }


def _status(volume: Volume) -> Answer:
    shown = volume.record.shown
    if shown is None:
        return {}
    return {
        "Image": shown.image,
        "Index": f"sha256:{shown.index}",
        "Mode": "rw" if shown.writable else "ro",
        "Path": shown.path,
        "Mounted": volume.mountpoint is not None,
        "ImageFiles": shown.files,
        "ImageBytes": shown.size_bytes,
    }

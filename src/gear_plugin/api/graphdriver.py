"""
The GraphDriver plugin protocol over a LayerStore.

Each call is one line of translation; what it means is `gear_plugin.layers`.
Shapes: moby daemon/graphdriver/proxy.go and plugin.go (v20.10.24).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from flask import Flask, Response, request

from gear_plugin.api.plugin import Answer, add_call, body, reply, text
from gear_plugin.durable import storage_full
from gear_plugin.errors import ArchiveMalformed, BadConfig, BadRequest, Unsupported
from gear_plugin.layers import Change

INTERFACE = "GraphDriver"


class Layers(Protocol):
    """What the protocol needs of a LayerStore; each method's promise is there."""

    def begin(self) -> None: ...
    def create(self, layer: str, parent: str, *, writable: bool) -> None: ...
    def remove(self, layer: str) -> None: ...
    def exists(self, layer: str) -> bool: ...
    def get(self, layer: str) -> Path: ...
    def put(self, layer: str) -> None: ...
    def cleanup(self) -> None: ...
    def apply(self, layer: str, read: Callable[[int], bytes]) -> int: ...
    def diff(self, layer: str, parent: str) -> Iterator[bytes]: ...
    def changes(self, layer: str, parent: str) -> list[Change]: ...
    def diff_size(self, layer: str, parent: str) -> int: ...
    def metadata(self, layer: str) -> dict[str, str]: ...


class GraphDriver:
    """
    The calls.

    *layers* may block until the store is ready (it is called for each
    request, so that the socket can be bound before slow work); *status* gives
    the lines that `docker info` shows.
    """

    def __init__(
        self, layers: Callable[[], Layers], status: Callable[[], list[tuple[str, str]]]
    ) -> None:
        self._layers = layers
        self._status = status

    def serve_on(self, app: Flask) -> None:
        """Add every call to *app*."""
        calls: dict[str, Callable[[Answer], Answer]] = {
            "Init": self._init,
            "Capabilities": lambda _: {"Capabilities": {"ReproducesExactDiffs": False}},
            "Create": lambda message: self._create(message, writable=False),
            "CreateReadWrite": lambda message: self._create(message, writable=True),
            "Remove": self._remove,
            "Exists": lambda message: {"Exists": self._layers().exists(_id(message))},
            "Get": self._get,
            "Put": self._put,
            "Status": lambda _: {"Status": [list(pair) for pair in self._status()]},
            "GetMetadata": lambda message: {"Metadata": self._layers().metadata(_id(message))},
            "Cleanup": self._cleanup,
            "Changes": self._changes,
            "DiffSize": lambda message: {
                "Size": self._layers().diff_size(_id(message), text(message, "Parent"))
            },
        }
        for name, call in calls.items():
            add_call(app, f"{INTERFACE}.{name}", call)
        app.add_url_rule(f"/{INTERFACE}.Diff", "diff", self._diff, methods=["POST"])
        app.add_url_rule(f"/{INTERFACE}.ApplyDiff", "apply", self._apply, methods=["POST"])

    def _init(self, message: Answer) -> Answer:
        if message.get("UIDMaps") or message.get("GIDMaps"):
            raise Unsupported(
                "gear does not support userns-remap: its files are shared between images with the"
                " owners they have; start dockerd without --userns-remap"
            )
        options = message.get("Opts") or []
        if not isinstance(options, list):
            raise BadRequest(f"{request.path}: Opts must be a list, not {options!r:.60}")
        for option in options:
            raise BadConfig(
                f"unknown storage option {option!r:.100}; "
                "gear is set up with `docker plugin set` or GEAR_ variables"
            )
        home = text(message, "Home", required=True)
        try:
            with storage_full(Path(home)):
                Path(home).mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a NUL in it
            raise BadRequest(f"{request.path}: cannot make Home {home!r:.100}: {error}") from error
        self._layers().begin()
        return {}

    def _create(self, message: Answer, *, writable: bool) -> Answer:
        if options := message.get("StorageOpt"):
            if not isinstance(options, dict):
                raise BadRequest("StorageOpt is not an object")
            given = ", ".join(f"--storage-opt {name}" for name in sorted(options))
            raise Unsupported(f"gear has no storage options of its own; run without {given}")
        _refuse_label(message)
        self._layers().create(_id(message), text(message, "Parent"), writable=writable)
        return {}

    def _get(self, message: Answer) -> Answer:
        _refuse_label(message)
        return {"Dir": str(self._layers().get(_id(message)))}

    def _remove(self, message: Answer) -> Answer:
        self._layers().remove(_id(message))
        return {}

    def _put(self, message: Answer) -> Answer:
        self._layers().put(_id(message))
        return {}

    def _cleanup(self, _: Answer) -> Answer:
        self._layers().cleanup()
        return {}

    def _changes(self, message: Answer) -> Answer:
        found = self._layers().changes(_id(message), text(message, "Parent"))
        return {
            "Changes": [
                {"Path": change.path.decode(errors="replace"), "Kind": int(change.kind)}
                for change in found
            ]
        }

    def _diff(self) -> Response:
        message = body()
        stream = self._layers().diff(_id(message), text(message, "Parent"))
        # A 200 is taken for a tar, so the first piece, which meets most
        # errors, is made before the status is sent.  A later failure raises
        # inside the response, which ends it without the final chunk.
        first = next(stream)

        def whole() -> Iterator[bytes]:
            yield first
            yield from stream

        response = Response(whole(), content_type="application/x-tar")
        response.call_on_close(getattr(stream, "close", lambda: None))
        return response

    def _apply(self) -> Response:
        layer = request.args.get("id", "")

        def read(size: int) -> bytes:
            try:
                return request.stream.read(size)
            except Exception as error:  # what gunicorn says of bad chunks has no common class
                raise ArchiveMalformed(f"docker broke off the tar of layer {layer}") from error

        return reply({"Size": self._layers().apply(layer, read)})


def _id(message: Answer) -> str:
    return text(message, "ID", required=True)


def _refuse_label(message: Answer) -> None:
    """A label that were not obeyed would be a container less confined than it looks."""
    if message.get("MountLabel"):
        raise Unsupported(
            "gear does not support SELinux labels; start dockerd without --selinux-enabled,"
            " or the container with --security-opt label=disable"
        )

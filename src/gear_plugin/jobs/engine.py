"""
The border to a Docker engine, over the Docker SDK.

Everything that docker or requests raise is translated here, once.
`Engine` is what the jobs need; tests stand in for it with archives on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import docker
import requests
from docker.errors import APIError, DockerException
from docker.errors import ImageNotFound as NoSuchImage

from gear_plugin.errors import EngineUnavailable, ImageNotFound, SourceUnavailable
from gear_plugin.names import ImageId

_TIMEOUT_S = 600
_CHUNK_BYTES = 4 << 20

Progress = Callable[[str], None]
"""Gets one line for people, now and then."""


class Engine(Protocol):
    """What building and pushing need of an engine."""

    def inspect(self, image: ImageId) -> dict[str, Any]:
        """`docker image inspect`; raises ImageNotFound, EngineUnavailable."""

    def export(self, image: ImageId, target: Path) -> None:
        """Write `docker save` of *image* to *target*; raises ImageNotFound, EngineUnavailable."""

    def load(self, archive: Path) -> None:
        """`docker load`; raises EngineUnavailable."""

    def push(self, image: ImageId, progress: Progress) -> None:
        """`docker push`; raises ImageNotFound, SourceUnavailable (the registry said no)."""


class DockerEngine:
    """A real engine: *host* as in DOCKER_HOST, or None for docker's default."""

    def __init__(self, host: str | None) -> None:
        self._host = host or "unix:///var/run/docker.sock"
        with self._translated():
            self._api = docker.APIClient(base_url=self._host, timeout=_TIMEOUT_S, version="auto")

    def inspect(self, image: ImageId) -> dict[str, Any]:
        with self._translated(image):
            found: dict[str, Any] = self._api.inspect_image(str(image))
            return found

    def export(self, image: ImageId, target: Path) -> None:
        with self._translated(image), target.open("wb") as out:
            for chunk in self._api.get_image(str(image), chunk_size=_CHUNK_BYTES):
                out.write(chunk)

    def load(self, archive: Path) -> None:
        with self._translated(), archive.open("rb") as data:
            for message in self._api.load_image(data, quiet=True):
                if "error" in message:
                    raise EngineUnavailable(f"docker load: {message['error']}")

    def push(self, image: ImageId, progress: Progress) -> None:
        with self._translated(image):
            lines = self._api.push(image.name, tag=image.tag, stream=True, decode=True)
            for message in lines:
                if "error" in message:
                    raise SourceUnavailable(f"the registry refused {image}: {message['error']}")
                if message.get("status") in ("Pushed", "Layer already exists"):
                    progress(f"{message.get('id', '')}: {message['status']}")

    @contextmanager
    def _translated(self, image: ImageId | None = None) -> Iterator[None]:
        try:
            yield
        except NoSuchImage as error:
            raise ImageNotFound(
                f"no image {image} in the engine at {self._host}; `docker images` lists them"
            ) from error
        except APIError as error:
            raise EngineUnavailable(f"the engine refused: {error.explanation}") from error
        except (DockerException, requests.RequestException) as error:
            raise EngineUnavailable(
                f"no Docker engine answers at {self._host} (--host, DOCKER_HOST): {error}"
            ) from error

"""
The border to a Docker engine, over the Docker SDK.

Everything that docker, requests or urllib3 raise is translated here, once.
`Engine` is what the jobs need; tests stand in for it with archives on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException
from docker.errors import ImageNotFound as NoSuchImage
from docker.utils import kwargs_from_env

from gear_plugin.errors import EngineUnavailable, ImageNotFound, SourceUnavailable
from gear_plugin.jobs.causes import system_error
from gear_plugin.jobs.platforms import Platform
from gear_plugin.jobs.progress import Progress
from gear_plugin.names import ImageId

DEFAULT_HOST = "unix:///var/run/docker.sock"
_CONTACT_TIMEOUT_S = 30
"""For what an engine knows without looking."""
_TIMEOUT_S = 600
"""Between two bytes: saving a large image takes minutes before the first one."""
_BUFFER_BYTES = 4 << 20
"""The engine sends pieces of 32 KiB; one write for many of them."""


class Pusher(Protocol):
    """Who has a Gear image and can push it: an engine, or `published.BuiltImages`."""

    def inspect(self, image: ImageId) -> dict[str, Any]:
        """`docker image inspect`; raises ImageNotFound, EngineUnavailable."""

    def push(self, image: ImageId, progress: Progress) -> None:
        """`docker push`; raises EngineUnavailable, SourceUnavailable (the registry said no)."""


class Engine(Pusher, Protocol):
    """What building and pushing need of an engine."""

    def export(self, image: ImageId, target: Path, advance: Callable[[int], None]) -> None:
        """
        Write `docker save` of *image* to *target*; *advance* gets the bytes as they come.

        Raises ImageNotFound, EngineUnavailable; OSError when *target* cannot be written.
        """

    def load(self, archive: Path) -> None:
        """`docker load`; raises EngineUnavailable."""


class DockerEngine:
    """
    A real engine: *host* as in DOCKER_HOST, or None for docker's default.

    *environ* may hold DOCKER_TLS_VERIFY and DOCKER_CERT_PATH.  Logins to
    registries are those of `docker login`.  Connects at once; raises
    EngineUnavailable.
    """

    def __init__(
        self,
        host: str | None,
        environ: Mapping[str, str],
        *,
        contact_timeout_s: int = _CONTACT_TIMEOUT_S,
        timeout_s: int = _TIMEOUT_S,
    ) -> None:
        self._host = host or DEFAULT_HOST
        with self._translated():
            settings = kwargs_from_env(environment={**environ, "DOCKER_HOST": self._host})
            self._api = docker.APIClient(**settings, timeout=contact_timeout_s, version="auto")
        self._api.timeout = timeout_s

    def close(self) -> None:
        """Close the connections to the engine."""
        self._api.close()

    def platform(self) -> Platform:
        """What its containers run on; raises EngineUnavailable."""
        with self._translated():
            found = self._api.version()
            return Platform.of(str(found.get("Os")), str(found.get("Arch")))

    def inspect(self, image: ImageId) -> dict[str, Any]:
        with self._translated(image):
            found: dict[str, Any] = self._api.inspect_image(str(image))
            return found

    def export(self, image: ImageId, target: Path, advance: Callable[[int], None]) -> None:
        with target.open("wb", buffering=_BUFFER_BYTES) as out:
            for piece in self._pieces(image):
                out.write(piece)
                advance(len(piece))

    def _pieces(self, image: ImageId) -> Iterator[bytes]:
        with self._translated(image):
            # Not `get_image`: that switches the time limit off for all that follows
            # (docker/api/client.py, _stream_raw_result).
            api: Any = self._api  # the stubs lack its inner methods
            with api._get(api._url("/images/{0}/get", str(image)), stream=True) as response:
                api._raise_for_status(response)
                yield from response.iter_content(_BUFFER_BYTES)

    def load(self, archive: Path) -> None:
        with archive.open("rb") as data, self._translated():
            # A refusal comes as "message" when it is sent in chunks: the SDK does
            # not look at the status then.  Read to the end, or the socket leaks.
            answers = list(self._api.load_image(data, quiet=True))
        for answer in answers:
            problem = answer.get("error") or answer.get("message")
            if problem:
                raise EngineUnavailable(f"the engine cannot load it: {problem}")

    def push(self, image: ImageId, progress: Progress) -> None:
        problem = None
        with self._translated(image):
            messages = self._api.push(image.name, tag=image.tag, stream=True, decode=True)
            for message in messages:
                problem = problem or message.get("error")
                if message.get("status") in ("Pushed", "Layer already exists"):
                    progress.step(f"layer {message.get('id', '')}: {message['status'].lower()}")
        if problem:
            raise SourceUnavailable(f"the registry did not take {image}: {problem}")

    @contextmanager
    def _translated(self, image: ImageId | None = None) -> Iterator[None]:
        try:
            yield
        except NoSuchImage as error:
            raise ImageNotFound(
                f"no image {image} in the engine at {self._host}; `docker images` lists them"
            ) from error
        except APIError as error:
            raise EngineUnavailable(
                f"the engine refused: {_one_line(error.explanation or error)}"
            ) from error
        except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            cause = system_error(error)
            reason = cause.strerror if cause else _one_line(error)
            raise EngineUnavailable(
                f"no Docker engine answers at {self._host} (--host, DOCKER_HOST): {reason}"
            ) from error


def _one_line(problem: object) -> str:
    """What others wrap into several lines."""
    return " ".join(str(problem).split())

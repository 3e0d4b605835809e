"""The words after `gear build --from`, and the platform, into a source."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from gear_plugin.cli import wiring
from gear_plugin.config import Config
from gear_plugin.errors import BadInput
from gear_plugin.names import ImageId

if TYPE_CHECKING:
    from gear_plugin.jobs import DockerEngine, Platform, Source

ENGINE, REGISTRY, STDIN = "engine", "registry", "-"
_REFERENCE = "docker://"
_FILE_TRANSPORTS = ("docker-archive:", "oci-archive:", "oci:", "tarball:")
_OTHER_TRANSPORTS = ("containers-storage:", "dir:", "ostree:", "sif:")


def source(
    text: str,
    image: ImageId,
    config: Config,
    engine: DockerEngine | None,
    platform: Platform | None,
    stack: ExitStack,
) -> Source:
    """
    What `--from` *text* means for *image*; what it opens is closed with *stack*.

    Raises BadInput: neither a word that is known nor a file.
    """
    from gear_plugin import jobs

    wanted = _chooser(config, engine, platform)
    if text == ENGINE:
        assert engine is not None
        return jobs.EngineSource(engine, image, wanted)
    if text == STDIN:
        return jobs.StreamSource(sys.stdin.buffer, image, wanted)
    if text == REGISTRY or text.startswith(_REFERENCE):
        name = str(image) if text == REGISTRY else text.removeprefix(_REFERENCE)
        reference = jobs.Reference.parse(name)
        registry = stack.enter_context(closing(wiring.registry(config)))
        return jobs.RegistrySource(registry, reference, wanted)
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise BadInput(_no_source(text)) from error
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return jobs.FileSource(path, image, wanted)
    # A named pipe, or what a shell makes of `<(docker save app)`.
    return jobs.StreamSource(stack.enter_context(path.open("rb")), image, wanted, text)


def _chooser(
    config: Config, engine: DockerEngine | None, platform: Platform | None
) -> Callable[[], Platform]:
    if platform is not None:
        return lambda: platform
    return lambda: engine.platform() if engine is not None else wiring.platform(config)


def _no_source(text: str) -> str:
    for transport in _FILE_TRANSPORTS:
        if text.startswith(transport):
            path = text.removeprefix(transport)
            return (
                f"--from takes the path alone ({path}); what it holds is seen from it, "
                "and the image's name picks one of several"
            )
    if text.startswith("docker-daemon:"):
        return "--from engine is what takes an image of the Docker engine"
    if text.startswith(_OTHER_TRANSPORTS):
        return f"--from does not read {text}; `skopeo copy {text} oci-archive:FILE` makes it a file"
    if text.startswith(("http://", "https://")):
        return f"--from wants `{_REFERENCE}REFERENCE` for an image in a registry"
    return (
        f"no file {text}; --from takes an archive or an OCI layout folder, `-` for stdin, "
        f"`{REGISTRY}`, `{_REFERENCE}REFERENCE` or `{ENGINE}`"
    )

"""
Shell completion: `gear completion SHELL`, and the names of images.

Whatever happens while somebody presses the tab key, nothing is printed but
completions, and it takes no longer than a moment: what does not answer at
once is left out.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from gear_plugin import config as settings
from gear_plugin.config import Config
from gear_plugin.errors import BadName
from gear_plugin.names import ImageId

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "gear"
VARIABLE = "_GEAR_COMPLETE"
_MOMENT_S = 1.0
_DOCKER_SOCKET = "unix:///var/run/docker.sock"

Source = Callable[[Config], Iterable[ImageId]]


class _Image(click.ParamType):  # type: ignore[type-arg]  # click 8.1 takes no argument
    """An image's name; the text is parsed by the command."""

    name = "image"

    def __init__(self, *sources: Source) -> None:
        self._sources = sources

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The known names that begin with *incomplete*."""
        config = _config(ctx)
        if config is None:
            return []
        found = _in_a_moment(config, self._sources)
        texts = sorted({str(image) for image in found})
        return [CompletionItem(text) for text in texts if text.startswith(incomplete)]


def _builds(config: Config) -> Iterator[ImageId]:
    return (image.gear for image in _named(config.root / "build"))


def _installed(config: Config) -> Iterator[ImageId]:
    return (image.gear for image in _named(config.root / "images"))


def _named(folder: Path) -> Iterator[ImageId]:
    """The images that entries of *folder* are named for."""
    for entry in os.scandir(folder):
        with contextlib.suppress(BadName):
            if "=" in entry.name:
                yield ImageId.from_folder(entry.name)


def _pushed(config: Config) -> list[ImageId]:
    from gear_plugin.catalog import is_unmade, open_catalog

    if is_unmade(config.catalog):
        return []  # opening it would make it
    catalog = open_catalog(config.catalog)
    try:
        return [record.gear_image for record in catalog.list_images()]
    finally:
        catalog.close()


def _in_engine(config: Config) -> Iterator[ImageId]:
    """Ordinary images of a local engine, asked without the Docker SDK, which takes long to load."""
    host = config.docker_host or os.environ.get("DOCKER_HOST") or _DOCKER_SOCKET
    if not host.startswith("unix://"):
        return
    connection = http.client.HTTPConnection("localhost")
    with socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.settimeout(_MOMENT_S)
        connection.sock.connect(host.removeprefix("unix://"))
        connection.request("GET", "/images/json")
        answer: list[dict[str, Any]] = json.loads(connection.getresponse().read())
    for name in (name for image in answer for name in image.get("RepoTags") or ()):
        with contextlib.suppress(BadName):
            image = ImageId.parse(name)
            if not image.is_gear:
                yield image


ORDINARY_IMAGE = _Image(_in_engine)
GEAR_IMAGE = _Image(_builds, _installed, _pushed)


def _config(ctx: click.Context) -> Config | None:
    """The settings as the words before the command give them; None: they are wrong."""
    given = ctx.find_root().params
    flags = {key: given.get(key) for key in ("root", "store", "catalog")}
    flags["docker_host"] = given.get("host")
    try:
        return settings.load(flags, file=given.get("file"))
    except Exception:
        return None


def _in_a_moment(config: Config, sources: Iterable[Source]) -> list[ImageId]:
    """What *sources* find at once; those that are slow, or fail, find nothing."""
    found: list[ImageId] = []

    def look(source: Source) -> None:
        with contextlib.suppress(Exception):
            found.extend(list(source(config)))

    threads = [threading.Thread(target=look, args=(source,), daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + _MOMENT_S
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return list(found)


class _Bash(BashComplete):
    """
    Click's own splits at the colons of image names, as bash does.

    So the line is taken as it was typed, and of each answer only what bash
    takes for the last word is given back.
    """

    source_template = r"""
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" word prefix="" kind value
    word="${line##*[[:space:]]}"
    if [[ $COMP_WORDBREAKS == *:* && $word == *:* ]]; then
        prefix="${word%%"${word##*:}"}"
    fi
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case "$kind" in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$prefix"}") ;;
        esac
    done < <(COMP_LINE="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def source(self) -> str:
        return self.source_template % self.source_vars()

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        is_new = not words or re.search(r"\s\Z", line)
        incomplete = "" if is_new else words.pop()
        return words[1:], incomplete


add_completion_class(_Bash)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """
    Print the script that lets a shell complete commands, options and images.

    \b
    bash, now and for every new shell:
        eval "$(gear completion bash)"
        gear completion bash > /etc/bash_completion.d/gear
    zsh (the folder must be in $fpath):
        gear completion zsh > /usr/local/share/zsh/site-functions/_gear
    fish:
        gear completion fish > ~/.config/fish/completions/gear.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root().command
    print(kind(root, {}, PROGRAM, VARIABLE).source().strip())

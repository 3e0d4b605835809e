"""
Names that come from outside, parsed once at the border into types.

Image ids (`name:tag`) follow the distribution reference grammar
(distribution/reference, reference.go) without digests; layer ids are what
dockerd and BuildKit use (64 hex, `<64 hex>-init`, 25-character base36, and
short words in moby's graphtest); volume names are those that docker's own
driver takes (moby daemon/names, RestrictedNamePattern), as docker lets other
drivers have any.  Pure values; safe from any thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gear_plugin.errors import BadName

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?"
_NAME = re.compile(rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_LAYER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\Z")
_USER = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\Z")

DEFAULT_TAG = "latest"
GEAR_SUFFIX = "-gear"


@dataclass(frozen=True, slots=True)
class ImageId:
    """
    `name:tag`, as the user typed it, with `:latest` added when it had no tag.

    The name is not rewritten (`nginx` stays `nginx`, not
    `docker.io/library/nginx`), because OIDs are made from it.
    """

    name: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> ImageId:
        """Parse `NAME[:TAG]`; raises BadName, digests (`@sha256:`) included."""
        head, colon, tag = text.rpartition(":")
        if not colon or "/" in tag:
            head, tag = text, DEFAULT_TAG
        if len(text) > 255 or not _NAME.match(head) or not _TAG.match(tag):
            raise BadName(f"not an image name (NAME[:TAG], lower case): {text[:100]!r}")
        return cls(head, tag)

    @property
    def gear(self) -> ImageId:
        """The name of the Gear image made from this one: `<name>-gear:<tag>`."""
        return ImageId(self.name + GEAR_SUFFIX, self.tag)

    @property
    def is_gear(self) -> bool:
        """Whether the name says that this is a Gear image."""
        return self.name.endswith(GEAR_SUFFIX)

    @property
    def original(self) -> ImageId:
        """The name that `gear build` was given, from a Gear image's name; raises BadName."""
        if not self.is_gear or self.name == GEAR_SUFFIX:
            raise BadName(f"not a Gear image's name (NAME{GEAR_SUFFIX}[:TAG]): {str(self)!r}")
        return ImageId(self.name.removesuffix(GEAR_SUFFIX), self.tag)

    @property
    def names_registry(self) -> bool:
        """Whether it begins with a registry's host (distribution/reference, normalize.go)."""
        host, slash, _ = self.name.partition("/")
        return bool(slash) and ("." in host or ":" in host or host == "localhost")

    @property
    def folder(self) -> str:
        """
        This id as one file name: `/` becomes `+`, `:` becomes `=`.

        Neither `+` nor `=` can stand in a reference, so it can be undone, and
        the result is safe in overlayfs option strings (which split at `:`).
        """
        return str(self).replace("/", "+").replace(":", "=")

    @classmethod
    def from_folder(cls, folder: str) -> ImageId:
        """The inverse of `folder`; raises BadName."""
        return cls.parse(folder.replace("+", "/").replace("=", ":"))

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


def parse_layer_id(text: str) -> str:
    """
    Return *text* if it can be a layer's id and a file name; raises BadName.

    Names with a dot in front are for the driver's own files beside the layers.
    """
    if not _LAYER.match(text):
        raise BadName(f"not a layer id: {text[:100]!r}")
    return text


def parse_volume_name(text: str) -> str:
    """Return *text* if it can be a volume's name and a file name; raises BadName."""
    if not _VOLUME.match(text):
        raise BadName(
            f"not a volume name (a letter or digit, then letters, digits, '_', '.', '-'; "
            f"at most 200): {text[:100]!r}"
        )
    return text


def parse_user(text: str) -> str:
    """Return *text* if it can be who mounts a volume (docker: 64 hex digits); raises BadName."""
    if not _USER.match(text):
        raise BadName(f"not an id of a mount: {text[:100]!r}")
    return text

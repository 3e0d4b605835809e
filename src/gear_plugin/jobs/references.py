"""
Which image is meant, and where it lives: registry host, repository, tag or digest.

docker's reading of a name (distribution/reference, normalize.go): the first
component is a host if it has a dot or a colon or is `localhost`; anything else
is on Docker Hub, whose official images stand below `library/`.  Pure values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gear_plugin.digest import Digest
from gear_plugin.errors import BadDigest, BadName
from gear_plugin.jobs.platforms import Platform
from gear_plugin.names import ImageId

HUB = "docker.io"
_HUB_NAMES = (HUB, "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Reference:
    """One image in one registry; `version` is a tag or `sha256:<64 hex>`."""

    host: str
    repository: str
    version: str

    @classmethod
    def of(cls, image: ImageId) -> Reference:
        """Where docker would pull *image* from."""
        host, slash, rest = image.name.partition("/")
        if not slash or not ("." in host or ":" in host or host == "localhost"):
            host, rest = HUB, image.name
        if host in _HUB_NAMES:
            host, rest = HUB, rest if "/" in rest else f"library/{rest}"
        return cls(host, rest, image.tag)

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse `NAME[:TAG][@sha256:...]`; a digest beats the tag.  Raises BadName."""
        name, at, digest = text.partition("@")
        found = cls.of(ImageId.parse(name))
        if not at:
            return found
        try:
            return cls(found.host, found.repository, str(Digest.parse(digest)))
        except BadDigest as error:
            raise BadName(f"not an image's digest (sha256:<64 hex digits>): {text[:200]!r}") from (
                error
            )

    @property
    def digest(self) -> Digest | None:
        """The digest, if that is what names the image."""
        return Digest.parse(self.version) if ":" in self.version else None

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if self.digest else ':'}{self.version}"


def same_image(one: str, other: ImageId | None) -> bool:
    """Whether the name *one*, as others write it into an archive, is that of *other*."""
    try:
        return other is not None and Reference.of(ImageId.parse(one)) == Reference.of(other)
    except BadName:
        return False


@dataclass(frozen=True, slots=True)
class Wish:
    """
    What to take where there may be several images.

    `image` picks by name (None: there is but one), `platform` where an image
    has several (asked only then).  `place` says for people where it is looked for.
    """

    image: ImageId | None
    platform: Callable[[], Platform]
    place: str

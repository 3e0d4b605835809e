"""
Which of a multi-platform image's variants to take.

Names are Go's (`linux/amd64`, `linux/arm/v7`), as OCI image-spec's image-index.md
demands; what `uname` says is understood too (containerd platforms/database.go,
v1.7).  Pure values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gear_plugin.errors import BadInput

_MACHINES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
}
_USUAL_VARIANTS = {"arm": "v7", "arm64": "v8"}
_WORD = re.compile(r"[a-z0-9_.-]+\Z")


@dataclass(frozen=True, slots=True)
class Platform:
    """`variant` is empty where the architecture has none, or its usual one."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse `os/architecture[/variant]`; raises BadInput."""
        words = text.lower().split("/")
        if not 2 <= len(words) <= 3 or not all(_WORD.match(word) for word in words):
            raise BadInput(f"not a platform (such as linux/amd64 or linux/arm/v7): {text[:100]!r}")
        return cls.of(*words)

    @classmethod
    def of(cls, system: str, machine: str, variant: str = "") -> Platform:
        """The platform by the names of an image, an engine or `uname`."""
        machine, usual = _MACHINES.get(machine.lower(), (machine.lower(), ""))
        variant = variant.lower() or usual
        if (machine, variant) in (("arm64", "8"), ("arm64", "v8"), ("amd64", "v1")):
            variant = ""
        return cls(system.lower(), machine, variant)

    @classmethod
    def of_machine(cls) -> Platform:
        """This machine's."""
        found = os.uname()
        return cls.of(found.sysname, found.machine)

    @classmethod
    def from_json(cls, found: Any) -> Platform | None:
        """From an image's configuration or a descriptor; None: it does not say."""
        if not isinstance(found, dict) or not (found.get("os") and found.get("architecture")):
            return None
        words = (found["os"], found["architecture"], found.get("variant") or "")
        return cls.of(*(str(word) for word in words))

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def choose(wanted: Platform, offered: Sequence[Platform]) -> int | None:
    """
    The place in *offered* of what to take for *wanted*; None: nothing fits.

    An arm machine runs what was made for lesser ones.  Another architecture is
    never taken unasked, even where the machine could run it.
    """
    usual = [_with_usual_variant(platform) for platform in offered]
    for platform in _preferred(_with_usual_variant(wanted)):
        if platform in usual:
            return usual.index(platform)
    return None


def _with_usual_variant(platform: Platform) -> Platform:
    variant = platform.variant or _USUAL_VARIANTS.get(platform.architecture, "")
    return Platform(platform.os, platform.architecture, variant)


def _preferred(wanted: Platform) -> Iterator[Platform]:
    """What a machine of this platform runs, the best first."""
    yield wanted
    number = wanted.variant.removeprefix("v")
    if wanted.architecture == "arm" and number.isdigit():
        for lesser in range(int(number) - 1, 4, -1):
            yield Platform(wanted.os, "arm", f"v{lesser}")
    elif wanted.architecture == "amd64" and wanted.variant:
        yield Platform(wanted.os, "amd64")

"""
Every scenario, by subject and name; the docstring of each says what must be the same.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.engine.differential.scenarios import (
    builds,
    changes,
    files,
    images,
    packages,
    running,
    system,
    volumes,
)
from tests.engine.differential.side import Side

__all__ = ["BUILDKIT", "CLASSIC", "NAMED", "QUICK", "SHORT"]

Scenario = Callable[[Side], None]
_SUBJECTS = (running, changes, files, volumes, images, builds, packages, system)

CLASSIC: dict[str, Scenario] = {
    f"{subject.__name__.rpartition('.')[2]}-{scenario.__name__}": scenario
    for subject in _SUBJECTS
    for scenario in subject.ALL
}
BUILDKIT: dict[str, Scenario] = {f"builds-{one.__name__}": one for one in builds.BUILDKIT}
NAMED = {**CLASSIC, **BUILDKIT}

SHORT = (
    *("running-commands", "running-read_only", "running-privileges", "changes-odd"),
    *("changes-attributes", "changes-names", "changes-linked", "changes-times", "changes-renames"),
    *("files-copied_in", "files-exported", "volumes-copied_up", "images-committed"),
    *("images-saved", "images-registry", "builds-classic", "builds-buildkit", "system-usage"),
)
"""For an engine beside the first: what touches the driver, each way once."""

_GEAR = (
    *("running-privileges", "changes-odd", "changes-attributes", "changes-renames"),
    *("files-copied_in", "images-registry", "builds-buildkit", "system-usage"),
)
_ORDINARY = ("changes-linked", "images-committed", "builds-classic")
QUICK = {"gear": _GEAR, "ordinary": _ORDINARY}
"""What `make test` has time for, by the image that it runs on."""

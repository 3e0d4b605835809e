"""What the kernel can do, tried on this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gear_plugin.errors import MountFailed
from gear_plugin.jobs.apart import call_apart
from gear_plugin.rootfs import Way, hide_mounts, kernel_features, mounts, probe

pytestmark = pytest.mark.root


def look(scratch: Path) -> tuple[dict[str, str], tuple[Way, ...], list[str]]:
    """Refusals by feature, the ways that work, and the mounts that are left."""
    hide_mounts()
    found = {feature.name: feature.refusal for feature in kernel_features(scratch)}
    plan = probe(scratch)
    left = [str(point) for point, _ in mounts() if scratch in point.parents]
    return found, plan.available, left


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_features_agree_with_the_ways_that_work(tmp_path: Path) -> None:
    """
    Two independent looks at one kernel; and nothing is left of either.
    """
    (found, ways, left) = call_apart(lambda: look(tmp_path / "scratch"), timeout_s=60).values[0]
    assert list(found) == [
        "overlayfs",
        "data-only layers",
        "mount API",
        "lowerdir+",
        "EROFS from a file",
        "EROFS from a loop device",
    ]
    has_index = not (found["EROFS from a file"] and found["EROFS from a loop device"])
    can_nest = has_index and not found["overlayfs"] and not found["data-only layers"]
    assert (Way.NESTED in ways) == can_nest
    assert (Way.FUSE_TREE in ways) == (not found["overlayfs"])
    if Way.DIRECT in ways:
        assert not found["lowerdir+"] and can_nest
    assert left == []
    assert not any(tmp_path in point.parents for point, _ in mounts()), "hidden, and gone"
    assert [path.name for path in tmp_path.rglob("*")] == ["scratch"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_without_rights_it_is_said(tmp_path: Path) -> None:
    """
    An expected error, not an OSError from a system call.
    """

    def attempt() -> None:
        os.setresuid(65534, 65534, 65534)
        hide_mounts()

    error = call_apart(attempt, timeout_s=60).error
    assert isinstance(error, MountFailed)
    assert "Operation not permitted" in str(error)

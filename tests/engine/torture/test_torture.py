"""
The torture test: a minute of it in `make test`, all of it as `make torture`.

`TORTURE_SEED=N` repeats a run as far as that is possible; `TORTURE_SECONDS=N` is
when no new work is begun any more.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.engine import small_images
from tests.engine.conftest import WORK
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.small_images import SmallImages
from tests.engine.torture.run import Plan, torture
from tests.engine.world import Gear, Node, install

pytestmark = [pytest.mark.engine, pytest.mark.root]

SHORT = Plan(lifecycles=14, applies=4, pulls=2, parallel=4, pause_s=3, limit_s=50)
LONG = Plan(lifecycles=500, applies=50, pulls=30, parallel=20, pause_s=12, limit_s=5400)


@pytest.fixture
def node(gear: Gear, registry: Registry, plugin_ref: str) -> Iterator[Node]:
    """An engine of its own with live-restore."""
    engine = Engine("t", WORK / "t", env=registry.client_environ, live_restore=True)
    engine.remove()
    try:
        engine.start("overlay2")
        install(engine, plugin_ref, gear.store)
        engine.restart("gear")
        yield Node(engine, gear.store)
    finally:
        engine.remove()


@pytest.fixture(scope="module")
def images(gear: Gear, registry: Registry) -> SmallImages:
    return small_images.make(gear, registry, "tortured", seed=2)


@pytest.fixture(scope="module")
def extra(gear: Gear, registry: Registry) -> SmallImages:
    return small_images.make(gear, registry, "pulled", seed=3)


@pytest.mark.parametrize(
    "plan", [SHORT, pytest.param(LONG, marks=pytest.mark.full)], ids=["short", "long"]
)
def test_nothing_breaks_whatever_is_killed(
    node: Node, images: SmallImages, extra: SmallImages, plan: Plan
) -> None:
    """
    No wrong byte, no cached file that fails, no hang, no leak.
    """
    seed = int(os.environ.get("TORTURE_SEED") or random.SystemRandom().randrange(1 << 32))
    limit_s = float(os.environ.get("TORTURE_SECONDS") or plan.limit_s)
    images.warm(node)
    report, is_fine = torture(node, images, extra, replace(plan, limit_s=limit_s), seed)
    print(report)
    assert is_fine, report

"""
Nothing that a user of docker does can tell Gear from overlay2.

One list of scenarios (`tests/engine/differential`) is run on an engine on each
driver, and all that was seen is compared: statuses, outputs, layers header by
header, trees.  On Gear's engine twice: on an ordinary image, and on the Gear
image of it.  docs/fidelity.md says what is let pass, and why.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.conftest import WORK
from tests.engine.differential import base, engines
from tests.engine.differential.engines import BASES, Pair, Refs
from tests.engine.differential.scenarios import NAMED, QUICK, SHORT
from tests.engine.differential.side import Engines
from tests.engine.engine import Engine
from tests.engine.engine26 import Engine26
from tests.engine.registry import Registry
from tests.engine.world import Gear

pytestmark = [pytest.mark.engine, pytest.mark.root]

DEBIANS_DOCKER = "/usr/bin/docker"
"""The client of Debian's docker.io, which talks to BuildKit without a plugin."""


@pytest.fixture(scope="module")
def refs(gear: Gear, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Refs:
    """The image in the registry, as it is and as a Gear image."""
    ref = f"{registry.address}/differential:1"
    base.make(gear.engine, ref, tmp_path_factory.mktemp("differential"))
    gear.engine.docker("push", "-q", ref)
    gear("build", ref)
    found = Refs(ref, ref.replace(":1", "-gear:1"))
    gear("push", found.gear)
    return found


@pytest.fixture(scope="module")
def pair(
    refs: Refs,
    registry: Registry,
    plugin_ref: str,
    gear: Gear,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """Docker 20.10 on overlay2 and on Gear."""
    overlay2, other = (Engine(name, WORK / name, env=registry.client_environ) for name in "od")
    scratch = tmp_path_factory.mktemp("sides")
    kind = Engines(exact=False, buildkit=DEBIANS_DOCKER)
    made = Pair(overlay2, other, registry, refs, scratch, kind)
    with engines.running(made, plugin_ref, gear.store):
        yield made


@pytest.fixture(scope="module")
def pair26(
    refs: Refs,
    registry: Registry,
    plugin_ref: str,
    gear: Gear,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """Docker 26.1 on overlay2 and on Gear."""
    shown = (gear.store, registry.folder)
    overlay2, other = (
        Engine26(name, WORK / name, registry.client_environ, shown) for name in ("o26", "d26")
    )
    scratch = tmp_path_factory.mktemp("sides26")
    kind = Engines(exact=True, buildkit=DEBIANS_DOCKER)
    made = Pair(overlay2, other, registry, refs, scratch, kind)
    with engines.running(made, plugin_ref, gear.store):
        yield made


CASES = [
    pytest.param(on, name, marks=[] if name in QUICK[on] else [pytest.mark.full])
    for on in BASES
    for name in NAMED
]
"""Every scenario on both images; most on the ordinary one are left to `make test-full`."""


@pytest.mark.parametrize(("on", "name"), CASES)
def test_a_scenario_is_the_same_as_on_overlay2(pair: Pair, name: str, on: str) -> None:
    """
    Each scenario's docstring says what must be the same.
    """
    found = pair.differences(name, NAMED[name], on)
    assert not found, "\n".join(found)


@pytest.mark.full
@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("on", BASES)
def test_a_scenario_is_the_same_on_docker_26(pair26: Pair, name: str, on: str) -> None:
    """
    The same, on the newest engine that takes such a plugin; layers to the last byte.
    """
    found = pair26.differences(name, NAMED[name], on)
    assert not found, "\n".join(found)

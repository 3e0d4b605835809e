"""
The short fuzz: the same targets as `make fuzz`, the same inputs each time.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import kernel
from tests.fuzz.run import mutated
from tests.fuzz.seeds import seeds
from tests.fuzz.strategies import WHOLE
from tests.fuzz.targets import TARGETS

_TARGETS = sorted(TARGETS)


@pytest.mark.parametrize("target", _TARGETS)
def test_every_seed_holds(target: str) -> None:
    """
    The corpora, whose good files are accepted, and every former finding.
    """
    accepted = [TARGETS[target](seed) for seed in seeds(target)]
    assert any(accepted)


@pytest.mark.parametrize("target", _TARGETS)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(draw=st.data())
def test_whole_objects_are_accepted(target: str, draw: st.DataObject) -> None:
    """
    And survive the round trip; a layer, when it means anything at all.
    """
    assert TARGETS[target](draw.draw(WHOLE[target]))


@pytest.mark.parametrize("target", _TARGETS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(draw=st.data(), number=st.integers(0, 2**32))
def test_damaged_objects_are_refused_or_hold(target: str, draw: st.DataObject, number: int) -> None:
    """
    One to eight changes to a whole object.
    """
    TARGETS[target](mutated(draw.draw(WHOLE[target]), random.Random(number)))


@pytest.mark.parametrize("target", _TARGETS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.binary(max_size=3000))
def test_any_bytes_are_refused_or_hold(target: str, data: bytes) -> None:
    """
    As they are, and behind headers that fit.
    """
    TARGETS[target](data)


@pytest.mark.parametrize("target", _TARGETS)
def test_damaged_seeds_are_refused_or_hold(target: str) -> None:
    """
    300 mutations of the corpora and larger inputs.
    """
    chance = random.Random(1)
    pool = [seed for seed in seeds(target) if len(seed) < 70_000]
    for _ in range(300):
        TARGETS[target](mutated(chance.choice(pool), chance))


def test_rearranged_indexes_are_refused_or_hold() -> None:
    """
    Inodes moved about, fields given other plausible values: much of it is accepted.
    """
    accepted = [TARGETS["erofs"](kernel.damaged(random.Random(number))) for number in range(150)]
    assert sum(accepted) > 40

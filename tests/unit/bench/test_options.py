"""What the flags of `python -m bench` select."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest
from bench import options
from bench.link import Link
from bench.options import FULL, QUICK, Options
from bench.systems import WAYS

from tests.engine.recipes import TASKS


def test_without_flags_everything_is_measured_on_a_few_images() -> None:
    """
    Three repetitions of what is cold, five of what is warm at least.
    """
    chosen = options.parse([])
    assert chosen == Options()
    assert chosen.ways == WAYS
    assert [link.name for link in chosen.links] == ["loopback", "100mbit"]
    assert chosen.runs >= 3
    assert min(chosen.warm, chosen.walks) >= 5


def test_presets_and_flags_go_together() -> None:
    """
    A flag beats the preset.
    """
    assert options.parse(["--quick"]) == QUICK
    assert options.parse(["--full"]) == FULL
    assert set(FULL.images) == set(TASKS) - {"torture"}
    words = ["--quick", "--links", "veth,20mbit", "--ways", "nested", "--runs", "4", "--merge"]
    chosen = options.parse(words)
    assert chosen.links == (Link("veth"), Link("20mbit", 20))
    assert (chosen.ways, chosen.runs, chosen.merge) == (("nested",), 4, True)
    assert chosen.images == QUICK.images


@pytest.mark.parametrize(
    "words",
    [
        ["--images", "web,nope"],
        ["--ways", ""],
        ["--parts", "everything"],
        ["--links", "fast"],
        ["--runs", "0"],
        ["--warm", "many"],
        ["--quick", "--full"],
    ],
)
def test_bad_flags_end_with_a_message(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """
    Before anything is started.
    """
    with pytest.raises(SystemExit):
        options.parse(words)
    assert "error:" in capsys.readouterr().err


def test_every_image_that_is_measured_has_a_task() -> None:
    """
    "Done" means that it printed what it should.
    """
    assert set(Options().images) | set(QUICK.images) <= set(FULL.images) <= set(TASKS)


def test_numbers_of_nodes_and_clients_are_above_zero() -> None:
    assert options.counts("1,20") == (1, 20)
    for text in ("", "0", "1,,2", "-1", "a"):
        with pytest.raises(ArgumentTypeError, match="not numbers above 0"):
            options.counts(text)

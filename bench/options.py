"""
What one run of the benchmark measures: three presets, and flags to change each.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tests.engine import plugin
from tests.engine.recipes import TASKS

from bench.link import Link
from bench.systems import WAYS

PARTS = ("cold", "warm", "tree", "many", "ordinary")
IMAGES = tuple(name for name in TASKS if name != "torture")
"""All that are made to be run, not to be compared."""
DEFAULT_IMAGES = ("web", "nginx", "scipy")


@dataclass(frozen=True)
class Options:
    """The defaults are those of `make bench`: 45 minutes on two cores."""

    images: tuple[str, ...] = DEFAULT_IMAGES
    ways: tuple[str, ...] = WAYS
    links: tuple[Link, ...] = (Link("loopback"), Link("100mbit", 100))
    parts: tuple[str, ...] = PARTS
    runs: int = 3
    builds: int = 2
    warm: int = 7
    walks: int = 9
    merge: bool = False
    results: Path = plugin.BUILD / "bench" / "results.json"


QUICK = Options(
    images=("web",), links=(Link("100mbit", 100),), parts=("cold", "warm"), runs=1, builds=1
)
FULL = Options(images=IMAGES, runs=5, builds=3, warm=15, walks=15)


def parse(argv: Sequence[str]) -> Options:
    """The options that *argv* asks for; ends the program with a message if it makes no sense."""
    parser = ArgumentParser(prog="python -m bench", description="overlay2 and Gear side by side")
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument("--quick", action="store_true", help="one image once, at 100 Mbit/s")
    preset.add_argument("--full", action="store_true", help="every image, more repetitions")
    for name, known in (("images", IMAGES), ("ways", WAYS), ("parts", PARTS)):
        shown = ",".join(known)
        parser.add_argument(f"--{name}", type=_words(known), metavar="A,B", help=f"of {shown}")
    links = "such as loopback,veth,100mbit"
    parser.add_argument("--links", type=_links, metavar="A,B", help=links)
    for name, text in (
        ("runs", "cold repetitions, and loads"),
        ("builds", "builds of each image"),
        ("warm", "warm starts"),
        ("walks", "walks through the cached trees"),
    ):
        parser.add_argument(f"--{name}", type=_count, metavar="N", help=text)
    merge = "keep rows of an earlier results.json that are about something else"
    parser.add_argument("--merge", action="store_true", default=None, help=merge)
    place = Options.results.relative_to(plugin.REPO)
    parser.add_argument("--results", type=Path, metavar="FILE", help=f"default: {place}")
    given = parser.parse_args(argv)
    base = QUICK if given.quick else FULL if given.full else Options()
    chosen = {field.name: getattr(given, field.name) for field in fields(Options)}
    return replace(base, **{key: value for key, value in chosen.items() if value is not None})


def _words(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def words(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        for word in chosen:
            if word not in known:
                raise ArgumentTypeError(f"{word!r} is not among {', '.join(known)}")
        return chosen

    return words


def _links(text: str) -> tuple[Link, ...]:
    try:
        return tuple(Link.parse(word) for word in text.split(","))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a number of repetitions")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Numbers above 0, as the type of an argument."""
    found = text.split(",")
    if not all(count.isdigit() and int(count) for count in found):
        raise ArgumentTypeError(f"{text!r} is not numbers above 0")
    return tuple(map(int, found))

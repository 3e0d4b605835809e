"""The error tree, held to its drawing."""

from __future__ import annotations

import inspect
import re

from gear_plugin import errors
from gear_plugin.errors import GearError

CLASSES = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, GearError)
}


def test_drawing_shows_every_error_under_its_parent() -> None:
    """The docstring's tree and the classes are the same tree."""
    assert errors.__doc__
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if found := re.match(r"    ([│ ]*)(?:[├└]── )?([A-Z]\w+)", line):
            depth = (found.start(2) - 4) // 4
            path[depth:] = [found[2]]
            if depth:
                drawn[found[2]] = path[depth - 1]
    real = {name: kind.__mro__[1].__name__ for name, kind in CLASSES.items()}
    del real["GearError"]
    assert drawn == real


def test_every_error_says_what_it_means() -> None:
    """One line of its own, not its parent's."""
    assert all("__doc__" in vars(kind) and kind.__doc__ for kind in CLASSES.values())
    lines = [kind.__doc__ for kind in CLASSES.values()]
    assert len(set(lines)) == len(lines)


def test_message_is_what_it_was_made_with() -> None:
    """`str()` is the line for the user."""
    assert all(str(kind("one line")) == "one line" for kind in CLASSES.values())

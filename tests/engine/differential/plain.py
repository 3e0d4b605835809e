"""
Text of docker without what is another at each run: ids, times, folders, the driver.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PATTERNS = (
    (r"\b[0-9a-f]{64}\b", "<id>"),
    (r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{12}\b", "<id>"),
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "<time>"),
    (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4} \w+", "<time>"),
    (r"\b(Less than a|About an?|\d+) (second|minute|hour|day|week|month|year)s?( ago)?", "<ago>"),
    (r"Up <ago>( \(.*?\))?", "Up"),
    # The Dockerfile in it names the image, whose name is longer on one side.
    (r"(?<=Sending build context to Docker daemon  )[\d.]+kB", "<size>"),
)
_COMPILED = tuple((re.compile(pattern), word) for pattern, word in _PATTERNS)

_NEVER_THE_SAME = (
    *("GraphDriver", "State.Pid", "NetworkSettings.SandboxKey", "NetworkSettings.SandboxID"),
    "Driver",
)
"""
Keys of `docker inspect` that are passed over, with all below them.

"""


def plain(text: str, words: Mapping[str, str]) -> list[str]:
    """The lines of *text*, with *words* replaced, then ids and times."""
    for found, instead in words.items():
        text = text.replace(found, instead)
    for pattern, instead in _COMPILED:
        text = pattern.sub(instead, text)
    return text.splitlines()


def flat(found: Any, name: str = "") -> Iterator[str]:
    """A line for each value in what `docker inspect` printed; an empty list is one too."""
    if name in _NEVER_THE_SAME:
        return
    if isinstance(found, dict) and found:
        for key, value in sorted(found.items()):
            yield from flat(value, f"{name}.{key}" if name else key)
    elif isinstance(found, list) and found:
        for number, value in enumerate(found):
            yield from flat(value, f"{name}[{number}]")
    else:
        yield f"{name} = {json.dumps(found)}"

"""The lines of the local socket."""

from __future__ import annotations

import inspect

import pytest

from gear_plugin import errors, wire
from gear_plugin.errors import BadRequest, ContentNotFound, GearError

CLASSES = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GearError)
]


def test_message_is_one_line_each_way() -> None:
    """Whatever its strings hold."""
    message = {"op": "fetch", "image": "a\nb", "n": 1, "deep": {"x": [None, True]}}
    line = wire.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert wire.decode(line) == message


@pytest.mark.parametrize("line", [b"", b"\n", b"{", b"[]", b'"x"', b"7", b"null", b"\xff\xfe"])
def test_other_lines_are_bad_requests(line: bytes) -> None:
    """Only a JSON object is a message."""
    with pytest.raises(BadRequest):
        wire.decode(line)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_crosses_as_itself(kind: type[GearError]) -> None:
    """Class and message are the same on the other side."""
    answer = wire.decode(wire.encode(wire.failure(kind("what was wrong"))))
    with pytest.raises(kind, match=r"^what was wrong$") as caught:
        wire.raise_failure(answer)
    assert type(caught.value) is kind


def test_success_raises_nothing() -> None:
    """`ok` true, with whatever else."""
    wire.raise_failure({"ok": True, "objects": 3})


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"ok": False},
        {"ok": 1},
        {"ok": False, "error": "NoSuchError"},
        {"ok": False, "error": "annotations"},
        {"ok": False, "error": "__name__"},
        {"ok": False, "error": ["ContentNotFound"]},
    ],
)
def test_unknown_failure_is_still_a_gear_error(answer: dict[str, object]) -> None:
    """A newer client, or a broken one: never success, never another exception."""
    with pytest.raises(GearError) as caught:
        wire.raise_failure(answer)
    assert type(caught.value) is GearError


def test_failure_without_a_reason() -> None:
    """It says so."""
    with pytest.raises(ContentNotFound, match="no reason given"):
        wire.raise_failure({"ok": False, "error": "ContentNotFound"})

"""
The comparison with overlay2 sees what it should, and nothing that is another at each run.
"""

from __future__ import annotations

import io

import pytest

from tests.engine.differential.compare import differences
from tests.engine.differential.plain import plain
from tests.engine.differential.side import Note
from tests.engine.differential.tars import Reading, listing
from tests.engine.odd_layers import entry, folder

END = bytes(1024)
NOW = 1_700_000_000


def lines(tar: bytes, *, meaning: bool) -> list[str]:
    reading = Reading(lambda second: second == NOW, untimed={b"old"}, meaning=meaning)
    return listing(io.BytesIO(tar), reading).lines


@pytest.mark.parametrize(
    ("one", "other", "same_meaning"),
    [
        (entry(b"f", data=b"x"), entry(b"f", data=b"x", pax={b"path": b"f"}), True),
        (entry(b"d/.wh.x"), entry(b"d/.wh.x", mode=0, mtime=5), True),
        (entry(b"f", mode=0o644), entry(b"f", mode=0o100644), True),
        (entry(b"f", mode=0o644), entry(b"f", mode=0o600), False),
        (entry(b"f", data=b"x"), entry(b"f", data=b"y"), False),
        (entry(b"f"), entry(b"f", pax={b"SCHILY.xattr.user.a": b"b"}), False),
        (entry(b"f"), entry(b"f", pax={b"uid": b"7"}), False),
        (entry(b"l", b"1", link=b"a"), entry(b"l", b"1", link=b"b"), False),
        (entry(b"f", data=bytes(600)), folder(b"f"), False),
    ],
)
def test_two_members_are_told_apart(one: bytes, other: bytes, same_meaning: bool) -> None:
    """
    By their bytes whatever differs, by meaning what a layer says.
    """
    assert lines(one + END, meaning=False) != lines(other + END, meaning=False)
    same = lines(one + END, meaning=True) == lines(other + END, meaning=True)
    assert same is same_meaning


@pytest.mark.parametrize("meaning", [False, True])
def test_times_of_the_run_and_times_without_meaning_do_not_count(meaning: bool) -> None:
    """
    They are shown as words; any other time is a number.
    """
    tar = entry(b"new", mtime=NOW) + folder(b"old", mtime=12) + entry(b"f", mtime=34) + END
    new, old, other, end = lines(tar, meaning=meaning)
    assert " now" in new
    assert " untimed" in old
    assert " 34" in other
    assert end == "end: 1024 bytes"


def test_a_tar_that_is_cut_off_says_so() -> None:
    """
    Data that is not there is not taken for zeros.
    """
    assert "CUT SHORT" in lines(entry(b"f", data=b"x" * 1000)[:700], meaning=True)[0]


def test_ids_and_times_are_taken_out_of_text_and_names_are_not() -> None:
    """
    A name that looks like an id to people, but is none, stays.
    """
    text = f"{'ab' * 32} 0123456789ab deadbeefcafe d-run 3 seconds ago 2026-01-02T03:04:05.6Z /r/x"
    assert plain(text, {"/r": "<root>"}) == ["<id> <id> deadbeefcafe d-run <ago> <time> <root>/x"]


def test_a_difference_is_shown_under_what_was_done() -> None:
    """
    Theirs with `-`, ours with `+`; other steps are a difference too.
    """
    one, two = Note("docker diff", ("A /a", "A /b")), Note("docker diff", ("A /a", "C /b"))
    assert differences([one], [one]) == []
    assert differences([one], [two]) == ["docker diff:", "-A /b", "+C /b"]
    assert differences([one], [])[0] == "not the same steps:"

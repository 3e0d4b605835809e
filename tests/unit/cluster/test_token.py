"""The cluster's token."""

from __future__ import annotations

import pytest

from gear_plugin.cluster import Token
from gear_plugin.errors import AccessDenied, BadConfig

OURS = Token("0123456789abcdef", "a" * 64)


def test_a_token_is_what_it_prints() -> None:
    assert Token.parse(OURS.text() + "\n") == OURS
    assert Token.new() != Token.new()
    assert OURS.secret not in repr(OURS)


@pytest.mark.parametrize("text", ["", "x", "a" * 64, OURS.text() + "0", OURS.text().upper()])
def test_what_is_no_token_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(BadConfig, match="no cluster token") as caught:
        Token.parse(text)
    assert not text or text not in str(caught.value) or text == "x"


def test_only_the_whole_header_lets_in() -> None:
    OURS.admit(OURS.header())
    for header, reason in (
        ("", "missing"),
        (OURS.text(), "not the cluster's token"),
        ("Bearer", "not the cluster's token"),
        ("Bearer " + OURS.text()[:-1] + "b", "not the cluster's token"),
        ("Bearer \u00e9", "not the cluster's token"),
        (Token("f" * 16, OURS.secret).header(), "of cluster ffffffffffffffff"),
    ):
        with pytest.raises(AccessDenied, match=reason) as caught:
            OURS.admit(header)
        assert OURS.secret not in str(caught.value)

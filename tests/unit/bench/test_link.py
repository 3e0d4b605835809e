"""Links by name, and what shapes them."""

from __future__ import annotations

import pytest
from bench.link import NODE, SERVER, Link, Tbf


def test_a_rate_becomes_a_bucket_of_5_ms_and_a_queue_of_20() -> None:
    """
    100 Mbit/s are 12.5 MB/s.
    """
    assert Tbf.of(100) == Tbf(100_000_000, 62_500, 312_500)


def test_a_slow_link_still_lets_whole_packets_through() -> None:
    """
    A bucket smaller than a packet would pass nothing, ever.
    """
    assert Tbf.of(1).burst_bytes >= 1514


def test_tc_gets_bits_and_bytes() -> None:
    """
    `rate` in bits a second, sizes as plain bytes.
    """
    words = "tc qdisc replace dev v0 root tbf rate 100000000bit burst 62500 limit 312500"
    assert Tbf.of(100).words("v0") == words.split()


@pytest.mark.parametrize(
    ("text", "mbit", "is_wire", "netns"),
    [
        ("loopback", 0, False, SERVER),
        ("veth", 0, True, NODE),
        ("100mbit", 100, True, NODE),
        ("1000mbit", 1000, True, NODE),
    ],
)
def test_links_have_names(text: str, mbit: int, *, is_wire: bool, netns: str) -> None:
    """
    On loopback the nodes are beside the registry.
    """
    link = Link.parse(text)
    assert (link.name, link.mbit, link.is_wire, link.node_netns) == (text, mbit, is_wire, netns)


@pytest.mark.parametrize("text", ["", "0mbit", "-1mbit", "100", "1Mbit", "1mbit ", "1000000mbit"])
def test_other_names_are_refused(text: str) -> None:
    """
    With the names that there are.
    """
    with pytest.raises(ValueError, match="loopback, veth"):
        Link.parse(text)

"""The JSON shapes of nodes."""

from __future__ import annotations

import pytest

from gear_plugin.cluster import Member, Members, Settings, parse_address
from gear_plugin.errors import BadRequest

NODE = "0" * 31 + "a"


def test_shapes_round_trip() -> None:
    members = Members(7, (Member(NODE, "a:1"), Member("f" * 32, "[::1]:2020", is_live=False)))
    assert Members.from_json(members.as_json()) == members
    assert members.live() == members.nodes[:1]
    settings = Settings("nfs://host/export", "etcd://host")
    assert Settings.from_json({**settings.as_json(), "new": 1}) == settings


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"version": True, "nodes": []},
        {"version": 1, "nodes": [None]},
        {"version": 1, "nodes": [{"node": NODE, "address": "a:1"}]},
        {"version": 1, "nodes": [{"node": "x", "address": "a:1", "is_live": True}]},
        {"version": 1, "nodes": [{"node": NODE, "address": "a", "is_live": True}]},
    ],
)
def test_other_shapes_are_refused(value: object) -> None:
    with pytest.raises(BadRequest):
        Members.from_json(value)


@pytest.mark.parametrize("address", ["a:1", ":2020", "10.0.0.1:65535", "[fe80::1]:1", "a-b.c:22"])
def test_addresses(address: str) -> None:
    assert parse_address(address) == address


@pytest.mark.parametrize(
    "address", ["", "a", "a:", "a:0", "a:65536", "a b:1", "a/b:1", "-a:1", "a:1\n", 1]
)
def test_what_is_no_address(address: object) -> None:
    with pytest.raises(BadRequest):
        parse_address(address)

"""The setting that says where etcd is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gear_plugin.catalog.etcd_address import EtcdAddress
from gear_plugin.errors import BadConfig


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("etcd://one", EtcdAddress((("one", 2379),), "/gear")),
        ("etcd://one/", EtcdAddress((("one", 2379),), "/gear")),
        ("etcd://10.0.0.1:4001/a/b/", EtcdAddress((("10.0.0.1", 4001),), "/a/b")),
        (
            "etcd://one,two:1,[fd00::1]:2/x",
            EtcdAddress((("one", 2379), ("two", 1), ("[fd00::1]", 2)), "/x"),
        ),
        (
            "etcds://gear@one/x?ca=/ca&cert=/c&key=/k%20y&password_file=/p",
            EtcdAddress(
                (("one", 2379),),
                "/x",
                user="gear",
                password_file=Path("/p"),
                ca=Path("/ca"),
                cert=Path("/c"),
                key=Path("/k y"),
            ),
        ),
    ],
)
def test_what_a_url_means(url: str, expected: EtcdAddress) -> None:
    """Members, prefix, user and files."""
    assert EtcdAddress.parse(url) == expected


def test_tls_without_a_ca_takes_the_systems() -> None:
    """As other programs do."""
    found = EtcdAddress.parse("etcds://one").ca
    assert found is not None
    assert found.is_absolute()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("etcd:", "not etcd://HOST"),
        ("etcd://", "not etcd://HOST"),
        ("etcd:///gear", "not etcd://HOST"),
        ("etcd://@one", "not etcd://HOST"),
        ("etcd://one:port", "not HOST"),
        ("etcd://one:0", "not HOST"),
        ("etcd://one:70000", "not HOST"),
        ("etcd://one,,two", "not HOST"),
        ("etcd://fd00::1", "not HOST"),
        ("etcd://one?ca=/ca", "etcds://"),
        ("etcds://one?cert=/c", "cert and key"),
        ("etcds://one?ca=", "'ca'"),
        ("etcd://one?timeout=3", "'timeout'"),
        ("etcd://gear@one", "password_file"),
        ("etcd://one?password_file=/p", "password_file"),
    ],
)
def test_other_urls_are_refused(url: str, message: str) -> None:
    """In one line that says which part is wrong."""
    with pytest.raises(BadConfig, match=message) as caught:
        EtcdAddress.parse(url)
    assert "\n" not in str(caught.value)


def test_a_password_in_the_url_is_refused_and_not_shown() -> None:
    """Settings show up in process lists, logs and `docker info`."""
    with pytest.raises(BadConfig, match="password_file") as caught:
        EtcdAddress.parse("etcd://gear:secret@one/gear")
    assert "secret" not in str(caught.value)

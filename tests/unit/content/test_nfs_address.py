"""Where a store on an NFS server is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gear_plugin.content.nfs_address import NfsAddress, is_nfs, store_folder
from gear_plugin.errors import BadConfig


@pytest.mark.parametrize(
    ("text", "host", "port", "export", "source"),
    [
        ("nfs://store/srv/gear", "store", 2049, "/srv/gear", "store:/srv/gear"),
        ("nfs://10.0.0.1:2050/a", "10.0.0.1", 2050, "/a", "10.0.0.1:/a"),
        ("nfs://a.b-c.example/x//y/", "a.b-c.example", 2049, "/x/y", "a.b-c.example:/x/y"),
        ("nfs://[FD00::1]:99/a", "fd00::1", 99, "/a", "[fd00::1]:/a"),
        ("nfs://h/", "h", 2049, "/", "h:/"),
        ("nfs://h/two%20words/%C3%A4", "h", 2049, "/two words/ä", "h:/two words/ä"),
        ("nfs://h/a:b,c=d", "h", 2049, "/a:b,c=d", "h:/a:b,c=d"),
    ],
)
def test_an_address_is_understood(
    text: str, host: str, port: int, export: str, source: str
) -> None:
    """
    Names, both kinds of addresses, ports, escaped characters.
    """
    found = NfsAddress.parse(text)
    assert (found.host, found.port, found.export, found.source) == (host, port, export, source)


@pytest.mark.parametrize(
    "text",
    [
        *("", "nfs:", "nfs://", "nfs:///srv", "nfs://h", "NFS://h/a", "h:/srv", "/srv/gear"),
        *("nfs://h:/a", "nfs://h:0/a", "nfs://h:65536/a", "nfs://h:x/a", "nfs://h:-1/a"),
        *("nfs://-h/a", "nfs://h-/a", "nfs://a b/a", "nfs://h,rw/a", "nfs://user@h/a"),
        *("nfs://::1/a", "nfs://[::1/a", "nfs://[x]/a", "nfs://[]/a", "nfs://[fe80::1%eth0]/a"),
        *("nfs://h/../a", "nfs://h/a/..", "nfs://h/./a", "nfs://h/%2e%2e/a"),
        *(
            "nfs://h/a?b",
            "nfs://h/a#b",
            "nfs://h/a\n",
            "nfs://h/a%0ab",
            "nfs://h/a%00",
            "nfs://h/%ff",
        ),
        "nfs://h/" + "x" * 1024,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """
    One line that names the setting.
    """
    with pytest.raises(BadConfig, match="setting 'store'") as caught:
        NfsAddress.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["nfs://h/a", "nfs://h:1/a", "nfs://[fd00::1]:1/a/b", "nfs://h/"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    """
    What a log shows can be put into a setting.
    """
    assert str(NfsAddress.parse(text)) == text
    assert NfsAddress.parse(str(NfsAddress.parse(text))) == NfsAddress.parse(text)


def test_the_folder_of_a_store() -> None:
    """
    A directory is its own; an export is below the main folder.
    """
    root = Path("/var/lib/gear")
    assert store_folder("/srv/store", root) == Path("/srv/store")
    assert store_folder("nfs://h/a", root) == Path("/var/lib/gear/nfs")
    assert is_nfs("nfs://anything") and not is_nfs("/nfs")

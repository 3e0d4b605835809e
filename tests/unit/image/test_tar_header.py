"""Tar headers are those that docker would write."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from gear_plugin.image import Kind, tar_header

FROM_GO: dict[str, tuple[dict[str, Any], str, int]] = {
    "plain": (
        {"name": b"etc/passwd", "mode": 0o644, "gid": 42, "size": 1234, "mtime_ns": 17 * 10**17},
        "40f2173d8fa2e97c",
        512,
    ),
    "directory": (
        {"name": b"var/lib/", "kind": Kind.DIR, "mode": 0o755, "mtime_ns": 10**9},
        "a80c675ded4b33db",
        512,
    ),
    "prefix": (
        {"name": b"p" * 90 + b"/" + b"q" * 90, "mode": 0o4755},
        "811ab4c506bc629c",
        512,
    ),
    "long": ({"name": b"x" * 101, "mode": 0o600}, "dd2d3b2fa938f51d", 1536),
    "utf8": ({"name": "é/ü/f".encode(), "mode": 0o600}, "464e1699d46c78f1", 1536),
    "latin1": ({"name": b"d/\xff\xfe", "mode": 0o600}, "503dde240a25bb11", 1536),
    "link": (
        {"name": b"l", "kind": Kind.SYMLINK, "mode": 0o777, "link": b"d/" * 60 + b"f"},
        "4be8b9220a92e405",
        1536,
    ),
    "owners": (
        {"name": b"o", "mode": 0o600, "uid": 2**21, "gid": 2**31, "size": 8**11},
        "eb85176a9e1bdbb2",
        1536,
    ),
    "old": ({"name": b"o", "mode": 0o600, "mtime_ns": -5 * 10**9}, "8c451d8c360c1fe5", 1536),
    "xattrs": (
        {
            "name": b"dir/f",
            "mode": 0o755,
            "xattrs": {b"security.capability": b"\1\0\0\2" + bytes(16), b"user.a": b"v\0w"},
        },
        "fe66053ed38d8ce2",
        1536,
    ),
    "device": (
        {"name": b"dev/null", "kind": Kind.CHAR, "mode": 0o666, "device": (1, 3)},
        "cf3350ba8c2fff66",
        512,
    ),
}
"""SHA-256 (first 16 digits) and length of what Go 1.26's archive/tar writes, Format: FormatPAX."""


@pytest.mark.parametrize("case", FROM_GO)
def test_headers_are_those_of_gos_archive_tar(case: str) -> None:
    """
    A layer made of the same files has the same digest, whoever wrote the tar.
    """
    fields, digest, length = FROM_GO[case]
    header = tar_header(**{"kind": Kind.FILE, **fields})
    assert len(header) == length
    assert hashlib.sha256(header).hexdigest()[:16] == digest

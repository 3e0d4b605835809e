"""Content ids and object ids."""

from __future__ import annotations

import hashlib

import pytest

from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import BadDigest

HEX = hashlib.sha256(b"content").hexdigest()


def test_all_forms_are_one_digest() -> None:
    """From content, text, hex and shard path; and back."""
    digest = Digest.of(b"content")
    assert Digest.parse(f"sha256:{HEX}") == digest
    assert Digest.from_hex(HEX) == digest
    assert Digest.from_shard_path(f"{HEX[:3]}/{HEX[3:]}") == digest
    assert str(digest) == f"sha256:{HEX}"
    assert digest.hex == HEX
    assert digest.shard_path == f"{HEX[:3]}/{HEX[3:]}"
    assert digest.raw == hashlib.sha256(b"content").digest()


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        f"sha512:{HEX}",
        f"SHA256:{HEX}",
        f"sha256:{HEX.upper()}",
        f"sha256:{HEX[1:]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX}\n",
        f"sha256: {HEX[1:]}",
        "sha256:" + "\u0661" * 64,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    """One spelling per digest, or two names would mean one object."""
    with pytest.raises(BadDigest):
        Digest.parse(text)


@pytest.mark.parametrize(
    "path",
    [
        HEX,
        f"{HEX[:2]}/{HEX[2:]}",
        f"{HEX[:3]}//{HEX[3:]}",
        f"/{HEX[:3]}/{HEX[3:]}",
        f"{HEX[:3]}/{HEX[3:]}.zst",
        "../" + HEX[3:],
    ],
)
def test_other_paths_are_no_objects(path: str) -> None:
    """Only the one place where an object can be."""
    with pytest.raises(BadDigest):
        Digest.from_shard_path(path)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_raw_digest_has_32_bytes(length: int) -> None:
    """Whatever made it."""
    with pytest.raises(BadDigest):
        Digest(bytes(length))


def test_long_nonsense_is_cut_in_the_message() -> None:
    """The error stays one readable line."""
    with pytest.raises(BadDigest) as caught:
        Digest.parse("x" * 10_000)
    assert len(str(caught.value)) < 200


def test_object_id_is_the_documented_hash() -> None:
    """sha256 of image id, `/`, path without leading slash; paths are bytes."""
    expected = hashlib.sha256(b"library/nginx:1.25/etc/nginx/\xff").hexdigest()
    assert object_id("library/nginx:1.25", b"etc/nginx/\xff") == expected
    assert object_id("library/nginx:1.25", b"/etc/nginx/\xff") == expected


def test_object_id_differs_by_image_and_path() -> None:
    """It names this path of this image."""
    ids = {object_id(image, path) for image in ("a:1", "a:2") for path in (b"x", b"y")}
    assert len(ids) == 4

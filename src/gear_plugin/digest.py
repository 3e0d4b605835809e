"""
Content ids (CID) and object ids (OID).

A CID names a regular file's content: `sha256:` and the 64 lower-case hex
digits of the SHA-256 of its uncompressed bytes, which makes it an OCI digest
too (OCI image-spec, descriptor.md).  An OID names "this path of this image".
Pure values; safe from any thread.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from gear_plugin.errors import BadDigest

_HEX = re.compile(r"[0-9a-f]{64}\Z")
SHARD_HEX_DIGITS = 3
"""Objects are spread over 16**3 = 4,096 folders in every data layer and store."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 content id, held as its 32 raw bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != hashlib.sha256().digest_size:
            raise BadDigest(f"a sha256 digest has 32 bytes, not {len(self.raw)}")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse `sha256:<64 hex>`; raises BadDigest on anything else."""
        prefix, _, hex_digits = text.partition(":")
        if prefix != "sha256":
            raise BadDigest(f"not a content id (sha256:<64 hex digits>): {text[:100]!r}")
        return cls.from_hex(hex_digits)

    @classmethod
    def from_hex(cls, hex_digits: str) -> Digest:
        """Parse 64 lower-case hex digits; raises BadDigest on anything else."""
        if not _HEX.match(hex_digits):
            raise BadDigest(f"not 64 lower-case hex digits: {hex_digits[:100]!r}")
        return cls(bytes.fromhex(hex_digits))

    @classmethod
    def of(cls, content: bytes) -> Digest:
        """The digest of *content*."""
        return cls(hashlib.sha256(content).digest())

    @property
    def hex(self) -> str:
        """The 64 lower-case hex digits."""
        return self.raw.hex()

    @property
    def shard_path(self) -> str:
        """`<first 3 hex digits>/<other 61>`: the object's place in a data layer or store."""
        digits = self.raw.hex()
        return f"{digits[:SHARD_HEX_DIGITS]}/{digits[SHARD_HEX_DIGITS:]}"

    @classmethod
    def from_shard_path(cls, path: str) -> Digest:
        """The inverse of `shard_path`; raises BadDigest."""
        shard, slash, rest = path.partition("/")
        if not slash or len(shard) != SHARD_HEX_DIGITS:
            raise BadDigest(f"not an object's path: {path[:100]!r}")
        return cls.from_hex(shard + rest)

    def __str__(self) -> str:
        return f"sha256:{self.raw.hex()}"


def object_id(image_id: str, path: bytes) -> str:
    """
    The OID of *path* in *image_id*, as 64 hex digits.

    sha256 of the image id's UTF-8 bytes, `/`, and the path's bytes without a
    leading slash.  *image_id* is `name:tag` of the original image as it was
    given to `gear build`.
    """
    return hashlib.sha256(image_id.encode() + b"/" + path.lstrip(b"/")).hexdigest()

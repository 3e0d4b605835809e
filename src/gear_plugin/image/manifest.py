"""
The manifest of a Gear index: what `index.erofs` cannot say.

Which image it was made from, that image's configuration, how much there is,
the digests of large objects' chunks and the start profile.  Objects and their
sizes are not repeated here: `index.erofs` has them, and digests do not
compress.  docs/index-format.md specifies the bytes.  Pure values.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from gear_plugin.digest import Digest
from gear_plugin.errors import BadDigest, BadName, IndexDamaged, Unsupported
from gear_plugin.image.tree import Totals
from gear_plugin.names import ImageId

FORMAT_VERSION = 1
LARGE_OBJECT_BYTES = 16 * 2**20
"""Objects from this size on have chunk digests, so that they can be read before they are whole."""
CHUNK_BYTES = 2**20
MAX_HEAD_BYTES = 8 * 2**20
"""An image configuration is a few KiB; JSON takes some 50 times its bytes as Python objects."""

_MAGIC = b"GEARMF\r\n"
# magic, version, head bytes, large objects, chunk digests, profile digests, zero
_FIXED = struct.Struct("<8sIIIIII")
_LARGE = struct.Struct("<32sI")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Manifest:
    """
    All that Gear knows of an image beside its tree.

    `image` is the original's name as it was given to `gear build`,
    `image_digest` the engine's id of it, `platform` `os/architecture[/variant]`,
    `config` its whole configuration object (OCI image-spec, config.md).
    `index_digest` is the SHA-256 of `index.erofs` and keys everything on a
    node.  `chunks` holds, for each object of at least LARGE_OBJECT_BYTES, the
    raw SHA-256 of each CHUNK_BYTES of it, the last one shorter.  `profile`
    lists the objects a start opens, in that order; empty: not known.
    """

    image: ImageId
    image_digest: Digest
    platform: str
    config: Mapping[str, Any]
    totals: Totals
    index_digest: Digest
    chunks: Mapping[Digest, tuple[bytes, ...]] = field(default_factory=dict)
    profile: tuple[Digest, ...] = ()

    def encode(self) -> bytes:
        """
        The manifest's bytes; equal manifests give equal bytes.

        Raises Unsupported for a configuration that is no UTF-8 JSON or larger
        than any sound one.
        """
        head = _canonical_json(
            {
                "config": self.config,
                "image": str(self.image),
                "image_digest": str(self.image_digest),
                "index_digest": str(self.index_digest),
                "platform": self.platform,
                "totals": asdict(self.totals),
            }
        )
        if len(head) > MAX_HEAD_BYTES:
            raise Unsupported(f"manifest: an image configuration of {len(head)} bytes")
        large = sorted(self.chunks.items())
        digests = [digest for _, chunks in large for digest in chunks]
        fixed = _FIXED.pack(
            _MAGIC, FORMAT_VERSION, len(head), len(large), len(digests), len(self.profile), 0
        )
        table = (_LARGE.pack(digest.raw, len(chunks)) for digest, chunks in large)
        return b"".join([fixed, head, *table, *digests, *(digest.raw for digest in self.profile)])

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """
        The manifest that *data* is, all of it.

        Raises IndexDamaged for anything that `encode` would not have written;
        a later format version says so.
        """
        if len(data) < _FIXED.size or not data.startswith(_MAGIC):
            raise IndexDamaged("manifest: this is none")
        _, version, head_size, large, digests, profile, _ = _FIXED.unpack_from(data)
        if version > FORMAT_VERSION:
            raise IndexDamaged(
                f"manifest: format {version} was made by a newer Gear; upgrade this one"
            )
        tables = large * _LARGE.size + (digests + profile) * _DIGEST_BYTES
        if len(data) != _FIXED.size + head_size + tables:
            raise IndexDamaged("manifest: its length is not what it says")
        if head_size > MAX_HEAD_BYTES:
            raise IndexDamaged(f"manifest: a head of {head_size} bytes")
        at = _FIXED.size + head_size
        entries = list(_LARGE.iter_unpack(data[at : at + large * _LARGE.size]))
        raw = _split(data[at + large * _LARGE.size :])
        if sum(count for _, count in entries) != digests:
            raise IndexDamaged("manifest: wrong number of chunk digests")
        chunks = {Digest(digest): tuple(_take(raw, count)) for digest, count in entries}
        found = cls(
            **_head(data[_FIXED.size : at]),
            chunks=chunks,
            profile=tuple(Digest(digest) for digest in raw),
        )
        # Whatever else could be said in more than one way (key order, blanks,
        # order of tables, reserved bytes) is settled by writing it again.
        if _encoded(found) != data:
            raise IndexDamaged("manifest: not in its canonical form")
        return found


def chunk_count(size: int) -> int:
    """How many chunk digests an object of *size* bytes has."""
    return -(-size // CHUNK_BYTES) if size >= LARGE_OBJECT_BYTES else 0


def _canonical_json(value: object) -> bytes:
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise Unsupported(f"manifest: the image's configuration is no proper JSON: {error}") from (
            error
        )


def _encoded(manifest: Manifest) -> bytes:
    try:
        return manifest.encode()
    except Unsupported as error:
        raise IndexDamaged(str(error)) from error


def _split(data: bytes) -> Iterator[bytes]:
    return (data[at : at + _DIGEST_BYTES] for at in range(0, len(data), _DIGEST_BYTES))


def _take(digests: Iterator[bytes], count: int) -> Iterable[bytes]:
    return (next(digests) for _ in range(count))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _head(data: bytes) -> dict[str, Any]:
    """The JSON head as arguments for Manifest."""
    try:
        head = json.loads(data, parse_constant=_no_constant)
        config, platform, totals = head["config"], head["platform"], head["totals"]
        if not isinstance(config, dict) or not isinstance(platform, str) or len(head) != 6:
            raise ValueError("wrong types or unknown keys")
        if not all(type(count) is int and count >= 0 for count in totals.values()):
            raise ValueError("totals are counts")
        return {
            "image": ImageId.parse(head["image"]),
            "image_digest": Digest.parse(head["image_digest"]),
            "index_digest": Digest.parse(head["index_digest"]),
            "platform": platform,
            "config": config,
            "totals": Totals(**totals),
        }
    except (
        *(ValueError, TypeError, KeyError, AttributeError, RecursionError),
        *(BadName, BadDigest),
    ) as error:
        raise IndexDamaged(f"manifest: a malformed head: {str(error)[:200]}") from error

"""
What the catalog's keys in etcd hold (`etcd.py` says which there are), as bytes.

Pure functions; nothing here talks to etcd.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from gear_plugin.catalog.base import ImageRecord
from gear_plugin.digest import Digest
from gear_plugin.errors import Damaged, GearError
from gear_plugin.names import ImageId

PAIR_BYTES = 64
"""A packed pair: 32 bytes OID, 32 bytes content."""
LIST_BYTES = 8192 * PAIR_BYTES
"""The most in one key: 512 KiB, as etcd takes 1.5 MiB a request (--max-request-bytes)."""


def encode_record(record: ImageRecord, generation: str) -> str:
    """One JSON object, which people read too."""
    fields = {
        "image": str(record.image),
        "gear_image": str(record.gear_image),
        "index": str(record.index),
        "original": str(record.original),
        "manifest": str(record.manifest),
        "objects": record.objects,
        "size_bytes": record.size_bytes,
        "created_s": record.created_s,
        "generation": generation,
    }
    return json.dumps(fields)


def decode_record(data: bytes) -> tuple[ImageRecord, str]:
    """The record and its generation; raises Damaged."""
    try:
        fields = json.loads(data)
        record = ImageRecord(
            image=ImageId.parse(fields["image"]),
            gear_image=ImageId.parse(fields["gear_image"]),
            index=Digest.parse(fields["index"]),
            original=Digest.parse(fields["original"]),
            manifest=Digest.parse(fields["manifest"]),
            objects=int(fields["objects"]),
            size_bytes=int(fields["size_bytes"]),
            created_s=int(fields["created_s"]),
        )
        return record, str(fields["generation"])
    except (ValueError, TypeError, KeyError, AttributeError, GearError) as error:
        raise Damaged(f"the catalog holds a damaged image record: {data[:100]!r}") from error


def decode_digest(data: bytes) -> Digest:
    """`sha256:<64 hex>`; raises Damaged."""
    try:
        return Digest.parse(data.decode())
    except (ValueError, GearError) as error:
        raise Damaged(f"the catalog holds a damaged content id: {data[:100]!r}") from error


def pack(objects: Mapping[str, Digest]) -> bytes:
    """OID to content, by OID; raises BadDigest."""
    return b"".join(
        sorted(Digest.from_hex(oid).raw + content.raw for oid, content in objects.items())
    )


def unpack(pairs: bytes) -> Iterator[tuple[str, Digest]]:
    """The inverse of `pack`; raises Damaged when it is no whole number of pairs."""
    if len(pairs) % PAIR_BYTES:
        raise Damaged(f"the catalog holds a damaged list of objects: {len(pairs)} bytes")
    for at in range(0, len(pairs), PAIR_BYTES):
        yield pairs[at : at + 32].hex(), Digest(pairs[at + 32 : at + PAIR_BYTES])


def split(pairs: bytes) -> Iterable[bytes]:
    """Into what goes into one key each."""
    return (pairs[at : at + LIST_BYTES] for at in range(0, len(pairs), LIST_BYTES))

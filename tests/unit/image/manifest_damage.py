"""
Manifests that must be refused, made from a whole one, and some that must not.

`python -m tests.unit.image.manifest_damage` writes them to
tests/corpus/manifest/; a test holds both together.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gear_plugin.digest import Digest
from gear_plugin.image import Manifest
from tests.unit.image.indexes import index

CORPUS = Path(__file__).parents[2] / "corpus" / "manifest"

WHOLE = index()[1].encode()
_HEAD_AT = 32
_HEAD_BYTES, _LARGE, _CHUNKS, _PROFILE, _ZERO = 12, 16, 20, 24, 28  # offsets
_MOST = b"\xff\xff\xff\xff"


def good() -> dict[str, bytes]:
    """Manifests that are taken."""
    strange = {
        "a": [None, True, 1e16, -0.5, '\u0000\n"\\ \ue000 \U0001f600'],
        "": {},
        "ä": {"b": 2**64},
    }
    return {
        "small": WHOLE,
        "empty-image": index(chunks={}, profile=())[1].encode(),
        "strange-configuration": index(config=strange)[1].encode(),
        "longest-name": index(image=_longest_name())[1].encode(),
    }


def _longest_name() -> Any:
    return index()[1].image.parse("a" * 126 + ":" + "b" * 128)


def _patched(at: int, new: bytes) -> bytes:
    return WHOLE[:at] + new + WHOLE[at + len(new) :]


def _head(change: Callable[[bytes], bytes]) -> bytes:
    """The manifest with its head changed, lengths made to fit."""
    (size,) = struct.unpack_from("<I", WHOLE, _HEAD_BYTES)
    head = change(WHOLE[_HEAD_AT : _HEAD_AT + size])
    fixed = WHOLE[:_HEAD_BYTES] + struct.pack("<I", len(head)) + WHOLE[_LARGE:_HEAD_AT]
    return fixed + head + WHOLE[_HEAD_AT + size :]


def _replaced(old: bytes, new: bytes) -> bytes:
    def change(head: bytes) -> bytes:
        assert head.count(old) == 1, old
        return head.replace(old, new)

    return _head(change)


def _json(**changes: Any) -> bytes:
    def change(head: bytes) -> bytes:
        values = {**json.loads(head), **changes}
        return json.dumps(
            {key: value for key, value in values.items() if value is not ...},
            **{"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False},  # type: ignore[arg-type]
        ).encode()

    return _head(change)


def _totals(**changes: Any) -> bytes:
    (size,) = struct.unpack_from("<I", WHOLE, _HEAD_BYTES)
    return _json(totals=json.loads(WHOLE[_HEAD_AT : _HEAD_AT + size])["totals"] | changes)


def _tables(change: Callable[[bytes], bytes], **counts: int) -> bytes:
    """The manifest with what follows its head changed, and some of its counts."""
    (size,) = struct.unpack_from("<I", WHOLE, _HEAD_BYTES)
    at = _HEAD_AT + size
    places = {"large": _LARGE, "chunks": _CHUNKS, "profile": _PROFILE}
    fixed = bytearray(WHOLE[:at])
    for name, count in counts.items():
        fixed[places[name] : places[name] + 4] = struct.pack("<I", count)
    return bytes(fixed) + change(WHOLE[at:])


def bad() -> dict[str, tuple[bytes, str]]:
    """Manifests that are refused, each with what the message says (a regular expression)."""
    length, head, form = "length is not what it says", "malformed head", "canonical form"
    image = b'"image":"library/nginx:1.25"'
    entry = (
        Digest.of(b"one").raw + struct.pack("<I", 0),
        Digest.of(b"two").raw + struct.pack("<I", 0),
    )
    two = b"".join(sorted(entry, reverse=True))
    return {
        "empty": (b"", "this is none"),
        "zeros": (bytes(4096), "this is none"),
        "cut-in-fixed-part": (WHOLE[:31], "this is none"),
        "cut-short": (WHOLE[:-1], length),
        "a-byte-too-many": (WHOLE + b"\0", length),
        "magic": (_patched(0, b"x"), "this is none"),
        "line-ends-converted": (WHOLE.replace(b"\r\n", b"\n", 1) + b"\0", "this is none"),
        "newer": (_patched(8, b"\2"), "newer Gear; upgrade"),
        "version-zero": (_patched(8, b"\0"), form),
        "reserved": (_patched(_ZERO, b"\1"), form),
        "head-claims-4-gib": (_patched(_HEAD_BYTES, _MOST), length),
        "large-objects-claim-154-gb": (_patched(_LARGE, _MOST), length),
        "chunks-claim-137-gb": (_patched(_CHUNKS, _MOST), length),
        "profile-claims-137-gb": (_patched(_PROFILE, _MOST), length),
        "chunks-for-profile": (_tables(lambda t: t, chunks=19, profile=1), "number of chunk"),
        "chunk-count-over-4-billion": (
            _tables(lambda t: t[:32] + _MOST + t[36:]), "number of chunk"
        ),
        "large-object-twice": (
            _tables(lambda _: entry[0] * 2, large=2, chunks=0, profile=0), form
        ),
        "large-objects-unsorted": (_tables(lambda _: two, large=2, chunks=0, profile=0), form),
        "head-empty": (_head(lambda _: b""), head),
        "head-not-json": (_head(lambda h: h[:-1] + b"]"), head),
        "head-a-list": (_head(lambda _: b"[1,2,3,4,5,6]"), head),
        "head-cut": (_head(lambda h: h[:-20]), head),
        "head-not-utf-8": (_replaced("ä".encode(), b"\xff\xfe"), head),
        "head-utf-16": (_head(lambda h: h.decode().encode("utf-16")), "(malformed|canonical)"),
        "head-with-byte-order-mark": (_head(lambda h: b"\xef\xbb\xbf" + h), form),
        "head-trailing": (_head(lambda h: h + b"{}"), head),
        "blanks": (_head(lambda h: h.replace(b",", b", ", 1)), form),
        "newline-at-the-end": (_head(lambda h: h + b"\n"), form),
        "escape-that-is-not-needed": (
            _replaced(b"linux/amd64", b"linux\\/amd64"), form
        ),
        "key-twice": (_replaced(image, image + b',"image":"library/nginx:1.26"'), form),
        "keys-unsorted": (
            _head(lambda h: json.dumps(dict(reversed(json.loads(h).items())),
                                       separators=(",", ":"), ensure_ascii=False).encode()), form
        ),
        "key-unknown": (_json(extra=1), head),
        "key-missing": (_json(platform=...), head),
        "lone-surrogate": (_replaced("ä".encode(), b"\\ud800"), "no proper JSON"),
        "nan": (_json(config={"a": float("nan")}), head),
        "infinity-in-disguise": (_replaced(b'"Cmd":null', b'"Cmd":1e999'), "no proper JSON"),
        "number-of-5000-digits": (_replaced(b'"Cmd":null', b'"Cmd":' + b"9" * 5000), head),
        "nested-9000-deep": (
            _replaced(b'"Cmd":null', b'"Cmd":' + b"[" * 9000 + b"]" * 9000), "recursion"
        ),
        "image-upper-case": (_json(image="UPPER"), "not an image name"),
        "image-leads-out": (_json(image="../../../etc/passwd:x"), "not an image name"),
        "image-with-a-newline": (_json(image="nginx:1\n"), "not an image name"),
        "image-without-tag": (_json(image="nginx"), form),
        "image-too-long": (_json(image="a" * 300), "not an image name"),
        "image-a-number": (_json(image=7), head),
        "digest-of-another-kind": (_json(image_digest="sha512:00"), "not a content id"),
        "digest-upper-case": (_json(index_digest="sha256:" + "AB" * 32), "lower-case"),
        "digest-missing": (_json(index_digest=None), head),
        "platform-null": (_json(platform=None), head),
        "configuration-a-list": (_json(config=[]), head),
        "totals-empty": (_json(totals={}), head),
        "totals-a-number": (_json(totals=5), head),
        "totals-negative": (_totals(files=-1), head),
        "totals-a-float": (_totals(files=3.0), head),
        "totals-true": (_totals(files=True), head),
        "totals-with-more": (_totals(extra=1), head),
    }  # fmt: skip


def misfits() -> dict[str, tuple[bytes, str]]:
    """Manifests whole in themselves, refused because they do not fit `ok-small`'s index."""
    small, large = Digest.of(b"small"), Digest.of(b"a large one")
    chunk = bytes(32)

    def with_(**changes: Any) -> bytes:
        return index(**changes)[1].encode()

    def totals(**changes: int) -> bytes:
        return Manifest.decode(_totals(**changes)).encode()

    return {
        "of-another-index": (with_(index_digest=Digest.of(b"other")), "not the one"),
        "totals-of-2-to-the-60-files": (totals(files=2**60), "not as much"),
        "totals-of-2-to-the-64-bytes": (totals(object_bytes=2**64), "not as much"),
        "chunk-missing": (with_(chunks={large: (chunk,) * 17}), "chunk digests of .* fit"),
        "chunk-too-many": (with_(chunks={large: (chunk,) * 19}), "chunk digests of .* fit"),
        "chunks-of-a-small-object": (
            with_(chunks={large: (chunk,) * 18, small: (chunk,)}), "chunk digests of .* fit"
        ),
        "chunks-of-no-object": (
            with_(chunks={large: (chunk,) * 18, Digest.of(b"x"): (chunk,) * 18}),
            "chunk digests of .* fit",
        ),
        "large-object-without-chunks": (with_(chunks={}), "no chunk digests"),
        "profile-of-another-image": (with_(profile=(Digest.of(b"theirs"),)), "start profile"),
    }  # fmt: skip


def main() -> None:
    """Write the corpus anew."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    for old in CORPUS.iterdir():
        old.unlink()
    for name, data in corpus().items():
        (CORPUS / name).write_bytes(data)


def corpus() -> dict[str, bytes]:
    """Every file of the corpus."""
    refused = {f"should-fail-{name}.manifest": data for name, (data, _) in bad().items()}
    unfit = {f"misfit-{name}.manifest": data for name, (data, _) in misfits().items()}
    return {f"ok-{name}.manifest": data for name, data in good().items()} | refused | unfit


if __name__ == "__main__":
    main()

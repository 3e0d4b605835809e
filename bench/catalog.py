"""
What recording an image costs each catalog: `python -m bench.catalog`.

Real ones: SQLite in a file, and an etcd of its own on loopback.  Prints a
line for each number of paths: the first push, the same push again, a push of
other files under that name, reading all objects, one look-up, and what the
database takes before and after it was compacted and defragmented.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.etcd_server import EtcdServer

from gear_plugin.catalog import Catalog, ImageRecord, open_catalog
from gear_plugin.digest import Digest, object_id
from gear_plugin.names import ImageId

IMAGE = ImageId("registry.example/team/app", "1")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("paths", nargs="*", type=int, default=[16_000, 100_000])
    for count in parser.parse_args().paths:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "catalog.sqlite"
            catalog = open_catalog(f"sqlite://{file}")
            _measure("sqlite", count, catalog)
            catalog.close()
            print(f"    {file.stat().st_size / 1e6:.1f} MB")
            server = EtcdServer(Path(folder))
            server.start()
            try:
                _etcd(server, count)
            finally:
                server.stop()


def _etcd(server: EtcdServer, count: int) -> None:
    catalog = open_catalog(f"etcd://127.0.0.1:{server.port}")
    import etcd3  # noqa: PLC0415 - the catalog has said how it is to be loaded

    client = etcd3.client("127.0.0.1", server.port, timeout=60)
    _measure("etcd", count, catalog, lambda: f"{client.status().db_size / 1e6:.1f} MB")
    client.compact(catalog._etcd.get(b"x").header.revision, physical=True)  # type: ignore[attr-defined]
    client.defragment()
    print(f"    {client.status().db_size / 1e6:.1f} MB compacted and defragmented")
    catalog.close()


def _measure(kind: str, count: int, catalog: Catalog, size: Callable[[], str] = str) -> None:
    first, second = _objects(b"1", count), _objects(b"2", count)
    print(f"{kind}, {count} paths")
    _timed("first push", lambda: catalog.put_image(_record(1), first), size)
    _timed("same push again", lambda: catalog.put_image(_record(2), first), size)
    _timed("all objects", lambda: catalog.objects_of(IMAGE), size)
    oid = next(iter(first))
    _timed("1,000 look-ups", lambda: [catalog.resolve(oid) for _ in range(1000)], size)
    _timed("other files, same name", lambda: catalog.put_image(_record(3), second), size)


def _timed(what: str, call: Callable[[], object], size: Callable[[], str]) -> None:
    begun_s = time.monotonic()
    call()
    print(f"    {time.monotonic() - begun_s:6.2f} s  {what:24} {size()}", flush=True)


def _objects(salt: bytes, count: int) -> dict[str, Digest]:
    return {
        object_id(str(IMAGE), b"usr/lib/%d" % number): Digest(
            hashlib.sha256(salt + b"%d" % number).digest()
        )
        for number in range(count)
    }


def _record(created_s: int) -> ImageRecord:
    some = Digest.of(b"")
    return ImageRecord(IMAGE, IMAGE.gear, some, some, some, 1, 1, created_s)


if __name__ == "__main__":
    main()

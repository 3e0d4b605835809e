"""
What is known: image records, and the content behind each path of each image.
"""

from __future__ import annotations

from pathlib import Path

from gear_plugin.catalog.base import Catalog, ImageRecord
from gear_plugin.catalog.memory import MemoryCatalog
from gear_plugin.catalog.place import catalog_file
from gear_plugin.catalog.sqlite import SqliteCatalog
from gear_plugin.errors import BadConfig

_SQLITE = "sqlite:///"


def open_catalog(url: str, *, timeout_s: float = 15.0) -> Catalog:
    """
    The catalog that *url* names: `sqlite:///<absolute path>`, or `etcd://...`
    (`etcd_address`).

    The path may be written with or without its own leading slash
    (`sqlite:///var/x` is /var/x).  *timeout_s*: how long a call waits for
    etcd's answer, or for other users of the file.  Raises BadConfig on any
    other URL, and what the catalog raises when it is opened.
    """
    if url.startswith(("etcd:", "etcds:")):
        # gRPC takes 0.3 s to load, which those who use SQLite are spared.
        from gear_plugin.catalog.etcd import EtcdCatalog
        from gear_plugin.catalog.etcd_address import EtcdAddress

        return EtcdCatalog(EtcdAddress.parse(url), timeout_s=timeout_s)
    path = url.removeprefix(_SQLITE).lstrip("/")
    if not url.startswith(_SQLITE) or not path:
        raise BadConfig(
            "setting 'catalog': neither sqlite:///<absolute path> nor "
            f"etcd://<host>[:<port>]: {url!r}"
        )
    return SqliteCatalog(Path("/" + path), timeout_s=timeout_s)


__all__ = [
    "Catalog",
    "ImageRecord",
    "MemoryCatalog",
    "SqliteCatalog",
    "catalog_file",
    "open_catalog",
]

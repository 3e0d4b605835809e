"""
What is known: image records, the content behind each path of each image, and
the nodes of the cluster.
"""

from __future__ import annotations

from pathlib import Path

from gear_plugin.catalog.base import Catalog, ImageRecord
from gear_plugin.catalog.memory import MemoryCatalog, MemoryRoster
from gear_plugin.catalog.place import catalog_file, is_unmade
from gear_plugin.catalog.roster import Report, Roster
from gear_plugin.catalog.sqlite import SqliteCatalog
from gear_plugin.catalog.sqlite_roster import SqliteRoster
from gear_plugin.errors import BadConfig

_ETCD = ("etcd:", "etcds:")


def open_catalog(url: str, *, timeout_s: float = 15.0) -> Catalog:
    """
    The catalog that *url* names: `sqlite:///<absolute path>`, or `etcd://...`
    (`etcd_address`).

    The path may be written with or without its own leading slash
    (`sqlite:///var/x` is /var/x).  *timeout_s*: how long a call waits for
    etcd's answer, or for other users of the file.  Raises BadConfig on any
    other URL, and what the catalog raises when it is opened.
    """
    if url.startswith(_ETCD):
        # gRPC takes 0.3 s to load, which those who use SQLite are spared.
        from gear_plugin.catalog.etcd import EtcdCatalog
        from gear_plugin.catalog.etcd_address import EtcdAddress

        return EtcdCatalog(EtcdAddress.parse(url), timeout_s=timeout_s)
    return SqliteCatalog(_file(url), timeout_s=timeout_s)


def open_roster(url: str, *, timeout_s: float = 15.0) -> Roster:
    """The cluster's records in the catalog that *url* names; all else as `open_catalog`."""
    if url.startswith(_ETCD):
        from gear_plugin.catalog.etcd_address import EtcdAddress
        from gear_plugin.catalog.etcd_roster import EtcdRoster

        return EtcdRoster(EtcdAddress.parse(url), timeout_s=timeout_s)
    return SqliteRoster(_file(url), timeout_s=timeout_s)


def _file(url: str) -> Path:
    file = catalog_file(url)
    if file is None:
        raise BadConfig(
            "setting 'catalog': neither sqlite:///<absolute path> nor "
            f"etcd://<host>[:<port>]: {url!r}"
        )
    return file


__all__ = [
    "Catalog",
    "ImageRecord",
    "MemoryCatalog",
    "MemoryRoster",
    "Report",
    "Roster",
    "SqliteCatalog",
    "SqliteRoster",
    "is_unmade",
    "open_catalog",
    "open_roster",
]

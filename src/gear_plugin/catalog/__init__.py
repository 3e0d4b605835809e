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


def open_catalog(url: str) -> Catalog:
    """
    The catalog that *url* names: `sqlite:///<absolute path>`.

    The path may be written with or without its own leading slash
    (`sqlite:///var/x` is /var/x).  Raises BadConfig on any other URL, and what
    the catalog raises when it is opened.
    """
    path = url.removeprefix(_SQLITE).lstrip("/")
    if not url.startswith(_SQLITE) or not path:
        raise BadConfig(f"setting 'catalog': not sqlite:///<absolute path>: {url!r}")
    return SqliteCatalog(Path("/" + path))


__all__ = [
    "Catalog",
    "ImageRecord",
    "MemoryCatalog",
    "SqliteCatalog",
    "catalog_file",
    "open_catalog",
]

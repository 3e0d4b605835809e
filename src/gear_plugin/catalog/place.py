"""
Where a catalog's file would be: for those who must not make one by looking.

Pure; safe from any thread.
"""

from __future__ import annotations

from pathlib import Path

_SQLITE = "sqlite:///"


def catalog_file(url: str) -> Path | None:
    """The file that *url* names (as `open_catalog` takes it); None: it names no file."""
    path = url.removeprefix(_SQLITE).lstrip("/")
    return Path("/" + path) if url.startswith(_SQLITE) and path else None

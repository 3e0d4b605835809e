"""
Where a catalog's file would be: for those who must not make one by looking.

Safe from any thread.
"""

from __future__ import annotations

from pathlib import Path

_SQLITE = "sqlite:///"


def catalog_file(url: str) -> Path | None:
    """The file that *url* names (as `open_catalog` takes it); None: it names no file."""
    path = url.removeprefix(_SQLITE).lstrip("/")
    return Path("/" + path) if url.startswith(_SQLITE) and path else None


def is_unmade(url: str) -> bool:
    """Whether *url* names a file that is not there, or empty: opening it would make a catalog."""
    file = catalog_file(url)
    try:
        return file is not None and file.stat().st_size == 0
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # who opens it is told why

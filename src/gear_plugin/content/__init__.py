"""
Where bytes live, named by digest: stores hold objects, the cache makes them
plain files on this node, the fetcher brings them from one to the other.

`Cache`, `Fetcher` and `Completer` belong to the node's client, the only
writer of the caches; every other process asks it through `LocalClient`.
"""

from gear_plugin.content.announce import until_named
from gear_plugin.content.ask import LocalClient
from gear_plugin.content.base import CHUNK_BYTES, Announcement, ObjectSource, ObjectStore, Put
from gear_plugin.content.cache import Cache, Usage
from gear_plugin.content.complete import Completer
from gear_plugin.content.directory import DirectoryStore
from gear_plugin.content.fetch import FetchCounts, Fetcher, SourceCounts
from gear_plugin.content.files import BuiltFiles, FileSource
from gear_plugin.content.memory import MemoryStore
from gear_plugin.content.profiles import DirectoryProfiles
from gear_plugin.content.relay import Reading, Relay
from gear_plugin.content.shelves import StoredFile, files_of, stored_files
from gear_plugin.content.starts import Starts
from gear_plugin.content.trash import Trash

__all__ = [
    "CHUNK_BYTES",
    "Announcement",
    "BuiltFiles",
    "Cache",
    "Completer",
    "DirectoryProfiles",
    "DirectoryStore",
    "FetchCounts",
    "Fetcher",
    "FileSource",
    "LocalClient",
    "MemoryStore",
    "ObjectSource",
    "ObjectStore",
    "Put",
    "Reading",
    "Relay",
    "SourceCounts",
    "Starts",
    "StoredFile",
    "Trash",
    "Usage",
    "files_of",
    "stored_files",
    "until_named",
]

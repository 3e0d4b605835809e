"""
Images as pure values: tars in, a tree, index bytes out, and back.

Nothing here opens a file: callers pass buffers and readers.
"""

from gear_plugin.image.archive import Member, SeekableSource, Source, TarReader
from gear_plugin.image.check import CheckedIndex, check_index
from gear_plugin.image.entry import NO_XATTRS, Directory, Inode, Kind
from gear_plugin.image.erofs import write as write_erofs
from gear_plugin.image.erofs import write_to as write_erofs_to
from gear_plugin.image.erofs_format import Buffer
from gear_plugin.image.erofs_reader import read as read_erofs
from gear_plugin.image.erofs_view import ErofsView, Status
from gear_plugin.image.flatten import Content, Flattened, flatten
from gear_plugin.image.folders import find_folder
from gear_plugin.image.layer import FOLDER, INDEX_NAME, MANIFEST_NAME, copy_layer, write_layer
from gear_plugin.image.manifest import (
    CHUNK_BYTES,
    FORMAT_VERSION,
    LARGE_OBJECT_BYTES,
    Manifest,
    chunk_count,
)
from gear_plugin.image.objects import ObjectTable
from gear_plugin.image.tar_header import BLOCK as TAR_BLOCK
from gear_plugin.image.tar_header import tar_header, tar_padding
from gear_plugin.image.tree import Totals, Tree
from gear_plugin.image.tree_tar import write_tree

__all__ = [
    "CHUNK_BYTES",
    "FOLDER",
    "FORMAT_VERSION",
    "INDEX_NAME",
    "LARGE_OBJECT_BYTES",
    "MANIFEST_NAME",
    "NO_XATTRS",
    "TAR_BLOCK",
    "Buffer",
    "CheckedIndex",
    "Content",
    "Directory",
    "ErofsView",
    "Flattened",
    "Inode",
    "Kind",
    "Manifest",
    "Member",
    "ObjectTable",
    "SeekableSource",
    "Source",
    "Status",
    "TarReader",
    "Totals",
    "Tree",
    "check_index",
    "chunk_count",
    "copy_layer",
    "find_folder",
    "flatten",
    "read_erofs",
    "tar_header",
    "tar_padding",
    "write_erofs",
    "write_erofs_to",
    "write_layer",
    "write_tree",
]

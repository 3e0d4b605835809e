"""
An image's objects into a store, each once, many at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.content import ObjectStore, Put
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentNotFound
from gear_plugin.jobs.progress import Progress
from gear_plugin.jobs.watched import Watch

# Compression is done in parallel, and a share that answers after a
# millisecond is kept busy.  8 threads with 64 files each stay far below the
# 1,024 open files that a process may have.
_THREADS = 8
_BATCH_OBJECTS = 64
_BATCH_BYTES = 32 << 20


@dataclass(slots=True)
class Uploaded:
    """What an upload did; bytes of content, uncompressed, unless they say `stored`."""

    objects: int = 0
    object_bytes: int = 0
    new_objects: int = 0
    new_bytes: int = 0
    new_stored_bytes: int = 0
    """What the new ones take in the store (compressed where it pays): what was written."""
    saved_bytes: int = 0
    """Of those that the store had."""
    saved_stored_bytes: int = 0
    """What those take in the store: what did not have to be written."""


def upload(
    objects: Mapping[Digest, int],
    files: Path,
    store: ObjectStore,
    watch: Watch,
    progress: Progress,
) -> Uploaded:
    """
    Put every object (with its size, as files below *files*), or raise.

    Raises ContentNotFound (a file is missing or cannot be read),
    ContentCorrupt (it was changed), and what the store and the watch raise.
    """
    progress.step(f"storing {len(objects)} objects", total_bytes=sum(objects.values()))
    watch.call(store.sweep)
    total = Uploaded()
    lock = threading.Lock()

    def advance(count_bytes: int) -> None:
        watch.moved()
        progress.advance(count_bytes)

    def put(batch: list[Digest]) -> None:
        paths = [(digest, files / digest.shard_path) for digest in batch]
        try:
            puts = store.put_all(paths, advance)
        except OSError as error:
            raise ContentNotFound(
                f"the build's {error.filename or files} cannot be read ({error.strerror}); "
                "run `gear build` again"
            ) from error
        with lock:
            for digest, done in zip(batch, puts, strict=True):
                _count(total, objects[digest], done)

    watch.run(put, _batches(objects), threads=_THREADS)
    return total


def _count(total: Uploaded, size_bytes: int, put: Put) -> None:
    total.objects += 1
    total.object_bytes += size_bytes
    if put.is_new:
        total.new_objects += 1
        total.new_bytes += size_bytes
        total.new_stored_bytes += put.stored_bytes
    else:
        total.saved_bytes += size_bytes
        total.saved_stored_bytes += put.stored_bytes


def _batches(objects: Mapping[Digest, int]) -> Iterator[list[Digest]]:
    """By digest: those of one folder of the store go together, and it is synced once."""
    batch: list[Digest] = []
    batch_bytes = 0
    for digest in sorted(objects, key=lambda digest: digest.raw):
        if batch and (len(batch) == _BATCH_OBJECTS or batch_bytes + objects[digest] > _BATCH_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(digest)
        batch_bytes += objects[digest]
    if batch:
        yield batch

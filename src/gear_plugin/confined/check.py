"""
The structure check of an index, as a process that may die.

Run as `python -m gear_plugin.confined.check` with a JSON list of its
arguments, `[LAYER, TABLE, MEMORY_BYTES, CPU_S]`, as the first line of standard
input (or on the command line); no line: it was started ahead and not needed.
It reads LAYER's index and manifest, writes the object table to TABLE, and prints
one JSON line, `{"ok": true, "index": <64 hex>, "image": <name:tag>}` or a
failure as gear_plugin.wire has it.  The kernel ends it when it wants more
than MEMORY_BYTES of address space or CPU_S seconds of processor.
"""

from __future__ import annotations

import json
import mmap
import resource
import sys
from pathlib import Path

from gear_plugin import wire
from gear_plugin.durable import storage_full
from gear_plugin.errors import GearError, IndexDamaged
from gear_plugin.image import INDEX_NAME, MANIFEST_NAME, check_index

_LIMITS_BYTES = {INDEX_NAME: 1 << 30, MANIFEST_NAME: 256 << 20}
"""
At 250 bytes a file (docs/index-format.md) 4 million files, and at 32 bytes a
MiB large objects of 8 TiB together: more than memory lets pass anyway.
"""


def check(layer: Path, table: Path) -> dict[str, object]:
    """Check the index in *layer* and write its object table; raises IndexDamaged, StorageFull."""
    for name, limit_bytes in _LIMITS_BYTES.items():
        size_bytes = (layer / name).stat().st_size
        if not 0 < size_bytes <= limit_bytes:
            raise IndexDamaged(f"{name} has {size_bytes} bytes; 1 to {limit_bytes} are possible")
    with (layer / INDEX_NAME).open("rb") as handle:
        erofs = mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ)
    checked = check_index(erofs, (layer / MANIFEST_NAME).read_bytes())
    with storage_full(table):
        table.write_bytes(checked.objects)
    return {
        "ok": True,
        "index": checked.manifest.index_digest.hex,
        "image": str(checked.manifest.image),
    }


def main(argv: list[str]) -> int:
    """See the module's text."""
    arguments = argv or json.loads(sys.stdin.readline() or "[]")
    if not arguments:
        return 0
    layer, table, memory_bytes, cpu_s = arguments
    _limit_resources(int(memory_bytes), int(cpu_s))
    try:
        answer = check(Path(layer), Path(table))
    except GearError as error:
        answer = wire.failure(error)
    except MemoryError:
        answer = wire.failure(IndexDamaged("the index wants more memory than any sound one"))
    print(json.dumps(answer))
    return 0 if answer["ok"] else 1


def _limit_resources(memory_bytes: int, cpu_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # The soft limit is SIGXCPU, which says why; the hard one is SIGKILL.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

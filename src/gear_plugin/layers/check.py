"""
The structure check of an index, as a process that may die.

Run as `python -m gear_plugin.layers.check LAYER TABLE`: reads LAYER's
index and manifest, writes the object table to TABLE, and prints one JSON line,
`{"ok": true, "index": <64 hex>, "image": <name:tag>}` or a failure as
gear_plugin.wire has it.
"""

from __future__ import annotations

import json
import mmap
import sys
from pathlib import Path

from gear_plugin import wire
from gear_plugin.errors import GearError, IndexDamaged
from gear_plugin.image import INDEX_NAME, MANIFEST_NAME, check_index
from gear_plugin.layers.images import limit_resources

_MANIFEST_LIMIT_BYTES = 512 << 20


def check(layer: Path, table: Path) -> dict[str, object]:
    """Check the index in *layer* and write its object table; raises IndexDamaged."""
    if (layer / MANIFEST_NAME).stat().st_size > _MANIFEST_LIMIT_BYTES:
        raise IndexDamaged(f"the manifest is over {_MANIFEST_LIMIT_BYTES >> 20} MiB")
    if not (layer / INDEX_NAME).stat().st_size:
        raise IndexDamaged("index.erofs is empty")
    with (layer / INDEX_NAME).open("rb") as handle:
        erofs = mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ)
    checked = check_index(erofs, (layer / MANIFEST_NAME).read_bytes())
    table.write_bytes(checked.objects)
    return {
        "ok": True,
        "index": checked.manifest.index_digest.hex,
        "image": str(checked.manifest.image),
    }


def main(argv: list[str]) -> int:
    """See the module's text."""
    limit_resources()
    try:
        answer = check(Path(argv[0]), Path(argv[1]))
    except GearError as error:
        answer = wire.failure(error)
    except MemoryError:
        answer = wire.failure(IndexDamaged("the index wants more memory than any sound one"))
    print(json.dumps(answer))
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""
What docker tells of its disk, and what it takes away when it is asked to.
"""

from __future__ import annotations

import json

from tests.engine.differential.side import BASE, Side


def usage(side: Side) -> None:
    """`docker system df` counts what containers wrote, what volumes hold, what images add."""
    side.started("d-writes", "-v", "d-holds:/vol")
    script = (
        "head -c 100000 /dev/zero > /a; ln /a /b; head -c 5000 /dev/zero > /vol/x;"
        "echo >> /odd/contents/4095; rm -r /odd/names; chmod 600 /odd/contents/1048576; mkdir /d;"
        "truncate -s 3M /hole; mkfifo /f; rm /odd/contents/1048577; :> /etc/issue"
    )
    side.do("exec", "d-writes", "sh", "-c", script)
    side.diff("d-writes")
    side.size("d-writes")
    side.do("commit", "d-writes", "differential/written:1")
    side.image("differential/written:1")
    side.image_size("differential/written:1")
    side.started("d-idle", image="differential/written:1")
    found = json.loads(side.do("system", "df", "-v", "--format", "{{json .}}"))
    side.note("containers", sorted(f"{one['Names']} {one['Size']}" for one in found["Containers"]))
    side.note(
        "volumes",
        sorted(
            f"{one['Name']} {one['Size']}"
            for one in found["Volumes"]
            if one["Name"].startswith("d-")
        ),
    )
    images = {f"{one['Repository']}:{one['Tag']}": one for one in found["Images"]}
    written = images["differential/written:1"]
    side.note("image", [written["UniqueSize"], written["Containers"]])
    side.do("inspect", "-s", BASE)


def pruned(side: Side) -> None:
    """`docker system prune`: stopped containers, images without a name, unused volumes."""
    side.do("builder", "prune", "-a", "-f")  # what other scenarios built
    side.do("create", "--name", "d-stopped", BASE)
    side.started("d-running", "-v", "d-used:/vol")
    for number in (1, 2):
        side.do("exec", "d-running", "sh", "-c", f"head -c {number}0000 /dev/zero > /written")
        side.do("commit", "d-running", "differential/pruned:1")
    side.do("volume", "create", "d-unused")
    side.docker("container", "prune", "-f")
    side.docker("image", "prune", "-f")
    side.docker("volume", "prune", "-f", in_order=False)
    side.docker("system", "prune", "-f", "--volumes", in_order=False)
    side.docker("ps", "-a", "--format", "{{.Names}}")
    side.run("sh", "-c", "wc -c < /written", image="differential/pruned:1")


ALL = (usage, pruned)

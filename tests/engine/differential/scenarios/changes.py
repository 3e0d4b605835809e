"""
What a program can do to the files of its image, and what becomes a layer.

Each of `ALL` changes files in a container of the base, where they lie in
lower layers, and then looks in every way there is: the container, `docker
diff`, the layer that a commit makes of it, a container of that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from tests.engine import odd_files
from tests.engine.differential import inside
from tests.engine.differential.base import MANY
from tests.engine.differential.side import BASE, Side

Scenario = Callable[[Side], None]


def looked_at(
    side: Side, name: str, code: str, *arguments: str, look: tuple[str, ...], on: str = BASE
) -> str:
    """What *code* does in a container of *on*, and as a layer; returns the new image."""
    ref = f"differential/{name}:1"
    container = side.started(f"d-{name}", image=on)
    side.python(container, code, *arguments, env=MANY)
    side.diff(container)
    side.seen(container, *look)
    side.do("commit", container, ref)
    side.layers(ref)
    side.image(ref)
    side.do("rm", "-f", "-v", container)
    side.seen_in(ref, *look)
    return ref


def _inside(part: Callable[[], None], *look: str) -> Scenario:
    """A scenario of one function of `inside`."""

    def scenario(side: Side) -> None:
        code = inspect.getsource(inside) + f"\n{part.__name__}()\n"
        looked_at(side, part.__name__.replace("_", "-"), code, look=look)

    scenario.__name__ = part.__name__
    scenario.__doc__ = part.__doc__
    return scenario


def odd(side: Side) -> None:
    """Every kind replaced by every other, folders emptied and made again, twice over."""
    code = inspect.getsource(odd_files)
    changed = looked_at(side, "odd", code, "change", look=("/odd",))
    looked_at(side, "odd-again", code, "again", look=("/odd",), on=changed)


def attributes(side: Side) -> None:
    """user.*, ACLs and capabilities in a container; what of it docker has in a layer as well."""
    code = inspect.getsource(inside)
    look = ("/odd/metadata", "/odd/copied", "/attributes", "/odd/tar/attributes")
    side.started("d-before")
    side.python("d-before", code + "\nattributes()\n")
    side.diff("d-before")
    side.seen("d-before", *look)
    looked_at(side, "attributes", code + "\nattributes()\ncapabilities_alone()\n", look=look)


def twice(side: Side) -> None:
    """A layer that undoes what the layer below it did, which undid the image's."""
    code = inspect.getsource(inside)
    first = looked_at(side, "emptied", code + "\nemptied()\n", look=("/odd/replaced",))
    second = looked_at(side, "filled", code + "\nfilled()\n", look=("/odd/replaced",), on=first)
    looked_at(side, "emptied-again", code + "\nemptied()\n", look=("/odd/replaced",), on=second)


ALL: tuple[Scenario, ...] = (
    odd,
    twice,
    _inside(inside.nothing_really, "/odd/metadata", "/odd/copied", "/odd/links"),
    _inside(inside.metadata_only, "/odd/metadata", "/odd/replaced", "/odd/copied"),
    attributes,
    _inside(inside.renames, "/odd/metadata", "/odd/replaced", "/odd/links", "/renames"),
    _inside(inside.linked, "/odd/links", "/linked"),
    _inside(inside.specials, "/odd/specials", "/specials"),
    _inside(inside.sizes, "/odd/contents", "/sizes"),
    _inside(inside.names, "/odd/names", "/odd/folders-named"),
    _inside(inside.times, "/odd/metadata", "/times"),
    _inside(inside.top_folders, "/srv", "/opt/new", "/mnt"),
    _inside(inside.deep, "/deep"),
    _inside(inside.numbers),
)

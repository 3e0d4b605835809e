"""
Volumes: filled from the image, kept, shared, taken away.
"""

from __future__ import annotations

from tests.engine.differential.side import Side


def copied_up(side: Side) -> None:
    """A new volume gets what the image has there, with all its metadata; once."""
    side.started("d-one", "-v", "d-copied:/odd/copied", "-v", "d-kinds:/odd/replaced")
    side.seen("d-one", "/odd/copied", "/odd/replaced")
    side.do("exec", "d-one", "sh", "-c", "rm /odd/copied/hard; echo more >> /odd/copied/file")
    side.diff("d-one")
    side.started("d-two", "-v", "d-copied:/odd/copied:ro")
    side.seen("d-two", "/odd/copied")
    side.docker("exec", "d-two", "touch", "/odd/copied/x")
    side.docker("volume", "rm", "d-copied")
    side.started("d-three", "-v", "d-empty:/odd/copied:nocopy")
    side.seen("d-three", "/odd/copied")
    side.started("d-four", "--volumes-from", "d-one")
    side.seen("d-four", "/odd/copied")
    side.exported("d-one")
    side.do("commit", "d-one", "differential/volumes:1")
    side.layers("differential/volumes:1")


def of_images(side: Side) -> None:
    """Volumes that the image declares, over folders that it fills and links that it has."""
    dockerfile = (
        "FROM differential/base:1\n"
        "RUN ln -s odd/copied /linked && mkdir -p /declared/x && echo 1 > /declared/x/y\n"
        "VOLUME /declared /linked /not/there\n"
        "RUN echo lost > /declared/lost\n"
    )
    folder = side.scratch / "volumes-context"
    folder.mkdir(exist_ok=True)
    side.build("differential/declares:1", dockerfile, folder)
    side.started("d-declared", image="differential/declares:1")
    side.seen("d-declared", "/declared", "/linked/", "/not/there", "/data")
    side.diff("d-declared")
    side.do("exec", "d-declared", "sh", "-c", "echo kept > /declared/kept")
    side.docker("cp", "d-declared:/declared/kept", str(side.scratch / "kept"))
    side.copied_out("d-declared", "/declared")
    side.exported("d-declared")
    side.do("rm", "-f", "d-declared")
    side.docker("volume", "ls", "-q")
    side.docker("volume", "prune", "-f", in_order=False)


ALL = (copied_up, of_images)

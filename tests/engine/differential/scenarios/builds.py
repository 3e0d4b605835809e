"""
`docker build`: the same Dockerfiles by the classic builder and by BuildKit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.engine.differential.scenarios.files import context
from tests.engine.differential.side import Side
from tests.engine.odd_layers import entry, folder

STEPS = """\
FROM differential/base:1 AS first
ARG WHO=nobody
ENV KEPT=yes
COPY file /copied/file
COPY dir/ /odd/metadata/moved.d/
COPY --chown=12:34 dir /odd/metadata/owned
ADD archive.tar /added/
RUN mv /odd/metadata/moved /odd/metadata/renamed && mv /odd/metadata/same.d /odd/same.d \\
 && rm -r /odd/deleted/folder /odd/replaced/dir-to-file && echo file > /odd/replaced/dir-to-file
RUN chmod 600 /odd/metadata/chmodded && chown -R 7:8 /odd/metadata/chowned.d \\
 && rm /odd/replaced/file-to-dir && mkdir /odd/replaced/file-to-dir \\
 && ln -sfn /odd/names /odd/replaced/symlink-to-file
RUN rm -r /odd/deleted && mkdir /odd/deleted && echo again > /odd/deleted/file
RUN true
USER 33
WORKDIR /made/by/workdir
RUN id > /tmp/who && echo "$WHO $KEPT" >> /tmp/who
VOLUME /odd/copied
LABEL made=here
ENTRYPOINT ["sh", "-c"]

FROM differential/base:1
COPY --from=first /odd/metadata /from/metadata
COPY --from=first /odd/replaced /odd/modes/owner-1 /from/more/
COPY --from=first /tmp/who /tmp/
COPY --from=0 /odd/links /from/links
COPY --from=differential/base:1 /odd/copied /from/image
USER 0
RUN cp -a /odd/modes /from/modes && rm -rf /odd/modes
"""

LOOK = ("/odd/metadata", "/odd/replaced", "/odd/deleted", "/copied", "/added", "/made")


def _sources(side: Side) -> Path:
    """What is built from; tars that ADD unpacks among it."""
    source = context(side.scratch / "to-build")
    (source / "dir/fifo").unlink(missing_ok=True)
    parts = [folder(b"in"), entry(b"in/x", data=b"x", uid=5, mode=0o4755), folder(b"in/empty")]
    parts += [entry(b"in/y", b"1", link=b"in/x"), entry(b"in/\xe9", data=b"raw")]
    (source / "archive.tar").write_bytes(b"".join(parts) + bytes(1024))
    return source


def _built(side: Side, *, buildkit: bool) -> None:
    source = _sources(side)
    for target in ("first", ""):
        ref = f"differential/built-{target or 'last'}:1"
        stage = ("--target", target) if target else ()
        side.build(ref, STEPS, source, *stage, buildkit=buildkit)
        side.image(ref)
        side.layers(ref)
    side.seen_in("differential/built-last:1", "/from", "/odd/metadata")
    words = ("-d", "--name", "d-first", "--network", "none", "--entrypoint", "sleep")
    side.do("run", *words, "differential/built-first:1", "900")
    side.seen("d-first", *LOOK)
    side.do("rm", "-f", "-v", "d-first")
    side.run("cat /tmp/who; pwd; env | sort", image="differential/built-first:1")


def classic(side: Side) -> None:
    """Every kind of step, in two stages."""
    _built(side, buildkit=False)


def buildkit(side: Side) -> None:
    """The same by BuildKit, which has nothing in its cache."""
    side.do("builder", "prune", "-a", "-f")
    _built(side, buildkit=True)


def failing(side: Side) -> None:
    """A step that fails; what is there is used again; `--no-cache`, `--squash`, an empty stage."""
    source = _sources(side)
    for name, last in (("bad", "RUN echo x > /x && exit 9"), ("good", "RUN cat /made")):
        text = f"FROM differential/base:1\nRUN echo made > /made\n{last}\n"
        words = ("build", "--network", "none", "-t", f"differential/{name}:1", "-f", "-")
        side.docker(*words, str(source), input=text, label=f"docker build {name}")
    text = "FROM scratch\nCOPY file /\nCOPY dir /\n"
    side.build("differential/scratch:1", text, source)
    side.do("create", "--name", "d-scratch", "differential/scratch:1", "x")
    side.exported("d-scratch")
    side.docker("start", "d-scratch")
    text = "FROM differential/base:1\nRUN echo 1 > /1 && rm -r /odd/deleted\n"
    text += "RUN rm /1 && echo 2 > /2\n"
    side.build("differential/squashed:1", text, source, "--squash")
    side.history("differential/squashed:1")
    side.layers("differential/squashed:1")


ALL: tuple[Callable[[Side], None], ...] = (classic, failing)
BUILDKIT: tuple[Callable[[Side], None], ...] = (buildkit,)

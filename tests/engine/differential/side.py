"""
An engine as a scenario sees it, and the notes of what was seen there.

Notes are lines of text under a label.  What another run would say otherwise
(ids, times of this run, folders) is taken out before it is noted; everything
else counts.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from tests.engine.compare import Scan, scan
from tests.engine.containers import tree
from tests.engine.differential.plain import flat, plain
from tests.engine.differential.tars import Reading, listing
from tests.engine.engine import Engine, EngineError
from tests.engine.odd_layers import UNTIMED
from tests.engine.registry import Registry

BASE = "differential/base:1"
SCRATCH = "differential/"
"""Images of this name, the base apart, and containers and volumes named `d-…` are a scenario's."""

_SINCE = int(time.time())


@dataclass(frozen=True, slots=True)
class Note:
    """What was seen, and when that was."""

    label: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Engines:
    """What the two engines of a comparison have in common."""

    exact: bool = False
    """
    Layers have the same bytes on both.  Before docker 23 they say the same:
    see `tars.Reading.meaning`.
    """

    buildkit: str = "docker"
    """A docker client that talks to BuildKit by itself."""


class Side:
    """
    *engine* with the image BASE, as one scenario uses it.

    Entered for one scenario: what that leaves behind is removed at the end.
    """

    def __init__(
        self, name: str, engine: Engine, registry: Registry, scratch: Path, kind: Engines
    ) -> None:
        self.engine = engine
        self.registry = registry
        self.scratch = scratch
        self.kind = kind
        self.notes: list[Note] = []
        self.repository = f"{registry.address}/differential/{name}"
        """Where this side pushes; another one has another."""
        self._base_layers = len(self._layers_of(BASE))

    def __enter__(self) -> Self:
        self._remove_everything()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._remove_everything()

    # --- docker --------------------------------------------------------------

    def docker(
        self,
        *words: str,
        label: str = "",
        input: str | None = None,  # noqa: A002
        in_order: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run docker and note its status and all that it says; not *in_order*: lines sorted."""
        done = self.engine.docker(*words, check=False, input=input)
        said = self.plain(done.stdout)
        self.note(
            label or " ".join(self.plain(word)[0][:60] for word in ("docker", *words) if word),
            [f"status {done.returncode}", *(said if in_order else sorted(said))]
            # The client's own log lines depend on which of its threads fails first.
            + [f"error: {line}" for line in self.plain(done.stderr) if line[:6] != 'time="'],
        )
        return done

    def do(self, *words: str) -> str:
        """Run docker; it must succeed, and what it prints is returned, not noted."""
        return self.engine.docker(*words).stdout

    def run(self, *command: str, options: Iterable[str] = (), image: str = BASE) -> None:
        """`docker run --rm`, noted."""
        self.docker("run", "--rm", "--network", "none", *options, image, *command)

    def started(self, name: str, *options: str, image: str = BASE) -> str:
        """A container *name* that waits."""
        words = ("run", "-d", "--name", name, "--network", "none", *options, image)
        self.do(*words, "sleep", "900")
        return name

    def python(self, container: str, code: str, *arguments: str, env: str = "X=x") -> None:
        """Run Python *code* in a container, and note what it prints."""
        words = ("exec", "-u", "0", "-e", env, container, "python3", "-c", code, *arguments)
        self.docker(*words, label=f"python in {container}: {code.strip().splitlines()[0][:60]}")

    def build(
        self, tag: str, dockerfile: str, context: Path, *options: str, buildkit: bool = False
    ) -> None:
        """`docker build` of *dockerfile* with the folder *context*; the status is noted."""
        words = ("build", "-q", "--network", "none", "-t", tag, "-f", "-", *options, str(context))
        if not buildkit:
            done = self.engine.docker(*words, check=False, input=dockerfile)
        else:
            environ = {**os.environ, **self.engine.environ, "DOCKER_BUILDKIT": "1"}
            done = subprocess.run(
                [self.kind.buildkit, *words],
                env=environ,
                capture_output=True,
                text=True,
                input=dockerfile,
                timeout=600,
            )
        if done.returncode:
            raise EngineError(f"building {tag}: {done.stderr[-3000:]}{done.stdout[-1000:]}")
        self.note(f"build {tag}", [f"status {done.returncode}"])

    # --- notes ---------------------------------------------------------------

    def note(self, label: str, lines: Iterable[str]) -> None:
        """Note *lines* under *label*; both are the same on every side."""
        self.notes.append(Note(label, tuple(lines)))

    def plain(self, text: str) -> list[str]:
        """The lines of *text* without what another run would say otherwise."""
        words: Mapping[str, str] = {
            str(self.engine.data_root): "<root>",
            self.repository: "<repository>",
            str(self.scratch): "<scratch>",
        }
        return plain(text, words)

    def diff(self, container: str) -> None:
        """`docker diff`, whose order means nothing."""
        done = self.engine.docker("diff", container, check=False)
        lines = sorted(self.plain(done.stdout)) + self.plain(done.stderr)
        self.note(f"docker diff {container}", [f"status {done.returncode}", *lines])

    def size(self, container: str) -> None:
        """The bytes that were written in a container; in no symbolic links (docs/fidelity.md)."""
        size = self.do("inspect", "-s", "-f", "{{.SizeRw}}", container)
        self.note(f"bytes written in {container}", [size.strip()])

    def inspected(self, what: str, *, drop: tuple[str, ...] = ()) -> None:
        """`docker inspect`; lines that start with one of *drop* are left out."""
        found: Any = json.loads(self.do("inspect", what))[0]
        lines = [line for line in flat(found) if not line.startswith(drop)]
        self.note(f"docker inspect {what}", self.plain("\n".join(lines)))

    def image(self, ref: str) -> None:
        """An image's configuration, and its history above the base."""
        base = ("RootFS", "Size", "VirtualSize", "RepoTags", "RepoDigests", "GraphDriver")
        self.inspected(ref, drop=base)
        self.history(ref)

    def image_size(self, ref: str) -> None:
        """The bytes of *ref* above the base, in all and by layer; see `size`."""
        self.note(f"bytes of {ref} above the base", [str(self._size(ref) - self._size(BASE))])
        self.history(ref, "{{.Size}}")

    def history(self, ref: str, what: str = "{{.CreatedBy}} | {{.Comment}}") -> None:
        """The history of *ref* above the base."""
        form = ("history", "--no-trunc", "--format", what)
        above = len(self.do(*form, ref).splitlines()) - len(self.do(*form, BASE).splitlines())
        self.note(f"history of {ref}", self.plain(self.do(*form, ref))[:above])

    def layers(self, ref: str) -> None:
        """The layers of *ref* above the base, byte for byte, as they are pushed."""
        tag = f"{self.repository}:{ref.replace('/', '-').replace(':', '-')}"
        self.do("tag", ref, tag)
        self.do("push", "-q", tag)
        self.do("rmi", tag)
        blobs = self.registry.layers(tag.removeprefix(f"{self.registry.address}/"))
        for number, blob in enumerate(blobs[self._base_layers :]):
            with gzip.open(blob) as stream:
                self._listed(f"layer {number} of {ref}", cast(IO[bytes], stream), layer=True)

    def exported(self, container: str) -> None:
        """Everything that `docker export` sends."""
        with self.output("export", container) as stream:
            self._listed(f"docker export {container}", stream)

    def copied_out(self, container: str, path: str) -> None:
        """The tar that `docker cp CONTAINER:PATH -` prints."""
        with self.output("cp", f"{container}:{path}", "-") as stream:
            self._listed(f"docker cp {container}:{path} -", stream)

    def seen(self, container: str, *paths: str) -> None:
        """What a container's processes see of *paths*, by an independent look."""
        root = tree(self.engine, container)
        for path in paths:
            self.note(f"{container} sees {path}", self._told(path, scan(root / path.lstrip("/"))))

    def seen_in(self, ref: str, *paths: str) -> None:
        """The same of a new container of *ref*."""
        self.started("d-look", image=ref)
        self.seen("d-look", *paths)
        self.do("rm", "-f", "-v", "d-look")

    @contextmanager
    def output(self, *words: str) -> Iterator[IO[bytes]]:
        """What docker prints, as bytes; it must succeed."""
        environ = {**os.environ, **self.engine.environ}
        with subprocess.Popen(["docker", *words], env=environ, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout
            process.stdout.read()
        if process.returncode:
            raise EngineError(f"docker {' '.join(words)}: status {process.returncode}")

    # --- inside --------------------------------------------------------------

    def _listed(self, label: str, stream: IO[bytes], *, layer: bool = False) -> None:
        meaning = layer and not self.kind.exact
        found = listing(stream, Reading(_is_recent, meaning=meaning, untimed=_UNTIMED))
        digest = [found.digest] if layer and self.kind.exact and found.timeless else []
        self.note(label, [*found.lines, *digest])

    @staticmethod
    def _told(path: str, found: Scan) -> Iterator[str]:
        """A line for each path in a scan, and for each fault."""
        for name, one in sorted(found.seen.items()):
            when: object = one.mtime_ns
            if _is_recent(one.mtime_ns // 10**9):
                when = "now"
            if f"{path.strip('/')}/{os.fsdecode(name)}".removesuffix("/.") in UNTIMED:
                when = "untimed"
            same = sorted(found.groups.get(name, ()))
            links = f" with {len(same)} from {same[0]!r}" if same else ""
            yield (
                f"{name!r} {one.kind} {one.mode:o} {one.uid}:{one.gid} {one.size} {when}"
                f" {one.device} {one.target!r} {one.xattrs} {one.content[:16]}{links}"
            )
        yield from found.faults

    def _layers_of(self, ref: str) -> list[str]:
        found = self.do("image", "inspect", ref, "-f", "{{json .RootFS.Layers}}")
        return cast(list[str], json.loads(found))

    def _size(self, ref: str) -> int:
        return int(self.do("image", "inspect", ref, "-f", "{{.Size}}"))

    def _remove_everything(self) -> None:
        """What a scenario made, or left when it failed."""
        if left := self.do("ps", "-aq").split():
            self.do("rm", "-f", "-v", *left)
        form = ("--format", "{{.Repository}}:{{.Tag}}")
        listed = self.do("images", *form).split()
        ours = (SCRATCH, self.repository)
        left = [ref for ref in listed if ref.startswith(ours) and ref != BASE]
        digests = self.do("images", "--digests", "--format", "{{.Repository}}@{{.Digest}}").split()
        left += [ref for ref in digests if ref.startswith(self.repository) and "<" not in ref]
        if left := sorted({ref for ref in left if "<none>" not in ref}):
            self.do("rmi", "-f", *left)
        self.do("image", "prune", "-f")
        if volumes := self.do("volume", "ls", "-q").split():
            self.do("volume", "rm", "-f", *volumes)


_UNTIMED = frozenset(os.fsencode(path) for path in UNTIMED)


def _is_recent(seconds: int) -> bool:
    """Whether a time lies in this run."""
    return _SINCE <= seconds <= time.time() + 60

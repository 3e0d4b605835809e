"""
`gear verify`: every object read and hashed, and what is wrong put right.

In the store: a damaged file is moved to `<store>/damaged/`, so that nobody reads
it any more and the next push sends that object again; a good copy takes its
place at once if any source has one, and the damaged file goes.  Objects that
images need and that are not there are treated alike.

In a node's cache: all names of a damaged file go, in `public/` and of every
image, so that it is fetched again when it is next opened.  A container that has
it open, or had it open since its image was mounted, keeps what it has.

Memory: one chunk a thread, the list of what is wrong, and about 100 bytes an
object that images need.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from gear_plugin.content import (
    CHUNK_BYTES,
    DirectoryStore,
    ObjectSource,
    StoredFile,
    files_of,
    stored_files,
)
from gear_plugin.digest import Digest
from gear_plugin.durable import storage_full, sync_directory
from gear_plugin.errors import (
    ContentCorrupt,
    ContentNotFound,
    SourceUnavailable,
    StorageFull,
    Unavailable,
)
from gear_plugin.jobs.progress import Progress
from gear_plugin.jobs.watched import Watch

_HASHING_THREADS = 2
"""hashlib and zstandard release the GIL; more would only take the disk from others."""
_LOOKING_THREADS = 8
DAMAGED, MISSING, UNREADABLE = "damaged", "missing", "unreadable"


Needs = Callable[[], Iterator[tuple[str, frozenset[Digest]]]]
"""The images that are asked about, with their objects; called more than once."""


@dataclass(slots=True)
class Problem:
    """One object that is not as it should be."""

    digest: str
    problem: str
    """`damaged`, `missing`, or `unreadable`: the disk gives an error."""
    place: str
    """The file; for a missing object the store."""
    action: str | None = None
    """What was done: `replaced`, `moved aside`, `removed`; None: nothing."""
    images: list[str] = field(default_factory=list)
    """Those of the images asked about that need it."""

    @property
    def is_repaired(self) -> bool:
        """Whether nobody can get wrong bytes, and who wants it can have it."""
        return self.action in ("replaced", "removed")


@dataclass(slots=True)
class Verification:
    """What `gear verify` found; bytes are those on disk."""

    place: str
    objects: int = 0
    """Files that were read."""
    size_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether nothing is left to be done."""
        return all(problem.is_repaired for problem in self.problems)


@dataclass(frozen=True, slots=True)
class Repair:
    """
    That damage is to be repaired: from one of the *sources* for an object,
    asked in their order from any thread, by way of the folder *scratch*.
    """

    sources: Callable[[Digest], Iterable[ObjectSource]]
    scratch: Path


def verify_store(
    root: Path,
    needs: Needs,
    progress: Progress,
    *,
    everything: bool,
    repair: Repair | None = None,
    stall_s: float = 120.0,
) -> Verification:
    """
    Look at the objects of the images that *needs* gives, and with *everything* at all others.

    Raises Unavailable when the store does not answer, or is full, and what *needs* raises.
    """
    name = f"store {root}"
    watch = Watch(name, stall_s, progress)
    checker = _StoreChecker(DirectoryStore(root), root, repair, watch.moved)
    watch.call(checker.check_present)
    objects = f"{root}/objects"
    wanted = [] if everything else _union(needs)

    def files() -> Iterator[StoredFile]:
        if everything:
            yield from stored_files(objects)
        for digest in wanted:
            yield from files_of(objects, digest)

    done = Verification(name)
    with _timed(done), _border(name):
        _run(done, files, checker.check, watch, progress)
        progress.step("looking for objects that are missing")
        for image, contents in needs():
            unseen = checker.unseen(contents)
            watch.run(checker.look_for, unseen, threads=_LOOKING_THREADS)
            checker.attribute(image, contents)
    done.problems = checker.found()
    return done


def verify_cache(
    roots: Sequence[Path],
    needs: Needs,
    progress: Progress,
    *,
    everything: bool,
    repair: bool = False,
    stall_s: float = 120.0,
) -> Verification:
    """
    Look at what the caches in *roots* (nodes' main folders) have of the images
    that *needs* gives, or with *everything* at all that they have.

    Raises SourceUnavailable when they cannot be read, and what *needs* raises.
    """
    name = ", ".join(f"cache {root}" for root in roots)
    watch = Watch(name, stall_s, progress)
    checker = _CacheChecker(watch.moved, is_repairing=repair)
    wanted = frozenset(() if everything else _union(needs))

    def files() -> Iterator[StoredFile]:
        for root in roots:
            yield from (file for file in _cached(root) if everything or file.digest in wanted)

    done = Verification(name)
    with _timed(done), _border(name):
        _run(done, files, checker.check, watch, progress)
        if not everything:
            for image, contents in needs():
                checker.attribute(image, contents)
    done.problems = checker.found()
    return done


def _union(needs: Needs) -> list[Digest]:
    return sorted({digest for _, contents in needs() for digest in contents})


def _run(
    done: Verification,
    files: Callable[[], Iterator[StoredFile]],
    check: Callable[[StoredFile], None],
    watch: Watch,
    progress: Progress,
) -> None:
    """Count every file, then check it."""

    def count() -> None:
        for file in files():
            watch.moved()
            done.objects += 1
            done.size_bytes += file.size_bytes

    def check_one(file: StoredFile) -> None:
        check(file)
        progress.advance(file.size_bytes)

    progress.step("counting")
    watch.call(count)
    progress.step(f"hashing {done.objects} objects", total_bytes=done.size_bytes)
    watch.run(check_one, files(), threads=_HASHING_THREADS)


class _Problems:
    """What was found, from any thread, and the images that need it."""

    def __init__(self) -> None:
        self._problems: dict[Digest, list[Problem]] = {}
        self._lock = threading.Lock()

    def note(self, digest: Digest, problem: str, place: str, action: str | None) -> None:
        """Something is wrong with *digest*."""
        with self._lock:
            self._problems.setdefault(digest, []).append(
                Problem(str(digest), problem, place, action)
            )

    def is_noted(self, digest: Digest) -> bool:
        """Whether anything is wrong with it."""
        with self._lock:
            return digest in self._problems

    def attribute(self, image: str, contents: frozenset[Digest]) -> None:
        """Note that *image* needs what is wrong of *contents*."""
        for digest, problems in self._problems.items():
            if digest in contents:
                for problem in problems:
                    problem.images.append(image)

    def found(self) -> list[Problem]:
        """All, by digest."""
        return [problem for _, problems in sorted(self._problems.items()) for problem in problems]


class _StoreChecker(_Problems):
    """Looks at one file, or for one object, of a store; *moved* is called again and again."""

    def __init__(
        self, store: DirectoryStore, root: Path, repair: Repair | None, moved: Callable[[], None]
    ) -> None:
        super().__init__()
        self._store = store
        self._aside = root / "damaged"
        self._repair = repair
        self._moved = moved
        self._seen: set[bytes] = set()

    def check_present(self) -> None:
        """Raise SourceUnavailable if there is no store."""
        next(self._store.list(), None)

    def check(self, file: StoredFile) -> None:
        """Read and hash one file."""
        try:
            with self._store.read_file(file) as chunks:
                _check_hash(file.digest, chunks, self._moved)
        except ContentNotFound:
            return  # a collector took it meanwhile
        except ContentCorrupt:
            action = self._put_right(file, self._repair) if self._repair else None
            self.note(file.digest, DAMAGED, file.path, action)
        except SourceUnavailable as error:
            # A soft-mounted share says EIO too when its server is away: nothing is moved.
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EIO:
                raise
            self.note(file.digest, UNREADABLE, file.path, None)

    def unseen(self, contents: frozenset[Digest]) -> list[Digest]:
        """Those of *contents* that were not looked for yet."""
        unseen = [digest for digest in contents if digest.raw not in self._seen]
        self._seen.update(digest.raw for digest in unseen)
        return unseen

    def look_for(self, digest: Digest) -> None:
        """Note an object that is not there."""
        try:
            self._store.size(digest)
        except ContentNotFound:
            if not self.is_noted(digest):  # as what was moved aside
                is_put = self._repair is not None and self._replace(digest, self._repair)
                self.note(digest, MISSING, self._store.name, "replaced" if is_put else None)

    def _put_right(self, file: StoredFile, repair: Repair) -> str:
        aside = self._aside / file.name
        aside.parent.mkdir(parents=True, exist_ok=True)
        Path(file.path).rename(aside)
        sync_directory(Path(file.path).parent)
        # Its other form, which is looked at by itself, will do.
        if self._store.has(file.digest) or self._replace(file.digest, repair):
            aside.unlink()
            return "replaced"
        return "moved aside"

    def _replace(self, digest: Digest, repair: Repair) -> bool:
        """Put a good copy into the store, if a source has one."""
        copy = repair.scratch / f"{digest.hex}-{threading.get_ident()}"
        for source in repair.sources(digest):
            try:
                with storage_full(copy), copy.open("wb") as out, source.read(digest) as chunks:
                    _check_hash(digest, _copied(chunks, out.write), self._moved)
            except (ContentNotFound, ContentCorrupt, Unavailable) as error:
                if isinstance(error, StorageFull):
                    raise
                continue
            else:
                self._store.put(digest, copy)
                return True
            finally:
                copy.unlink(missing_ok=True)
        return False


class _CacheChecker(_Problems):
    """Looks at one file of a node's cache; *moved* is called again and again."""

    def __init__(self, moved: Callable[[], None], *, is_repairing: bool) -> None:
        super().__init__()
        self._moved = moved
        self._is_repairing = is_repairing

    def check(self, file: StoredFile) -> None:
        """Read and hash one file; remove all names of a damaged one."""
        try:
            handle = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # evicted meanwhile
        with FileIO(handle) as opened:
            problem = self._problem(file.digest, opened)
            if problem is None:
                return
            action = None
            if self._is_repairing:
                _drop(_cache_of(file), file.digest, handle)
                action = "removed"
        self.note(file.digest, problem, file.path, action)

    def _problem(self, digest: Digest, opened: FileIO) -> str | None:
        try:
            _check_hash(digest, iter(lambda: opened.read(CHUNK_BYTES), b""), self._moved)
        except ContentCorrupt:
            return DAMAGED
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return UNREADABLE
        return None


def _cached(root: Path) -> Iterator[StoredFile]:
    """Every file of the cache in *root* once; private ones only if they have no public name."""
    yield from stored_files(f"{root}/public")
    with contextlib.suppress(FileNotFoundError):
        for image in sorted((root / "private").iterdir()):
            for file in stored_files(str(image)):
                if not _is_same(file.path, f"{root}/public/{file.name}"):
                    yield file


def _cache_of(file: StoredFile) -> Path:
    folder = Path(file.folder)
    return folder.parent if folder.name == "public" else folder.parent.parent


def _drop(root: Path, digest: Digest, handle: int) -> None:
    """
    Remove every name of the open file *handle* in the cache in *root*.

    The client may link one back from another meanwhile, so until none is left.
    """
    while os.fstat(handle).st_nlink:
        images = [path for path in (root / "private").iterdir() if path.is_dir()]
        names = [folder / digest.shard_path for folder in (*images, root / "public")]
        dropped = 0
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(name.lstat(), os.fstat(handle)):
                    name.unlink()
                    dropped += 1
        if not dropped:
            return  # its other names are none of the cache's


def _is_same(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except FileNotFoundError:
        return False


def _copied(chunks: Iterable[bytes], write: Callable[[bytes], object]) -> Iterator[bytes]:
    for chunk in chunks:
        write(chunk)
        yield chunk


def _check_hash(digest: Digest, chunks: Iterable[bytes], moved: Callable[[], None]) -> None:
    """Raise ContentCorrupt unless *chunks* hash to *digest*."""
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
        moved()
    if sha256.digest() != digest.raw:
        raise ContentCorrupt(f"content is {Digest(sha256.digest())}, not {digest}")


@contextlib.contextmanager
def _timed(done: Verification) -> Iterator[None]:
    begun = time.monotonic()
    yield
    done.seconds = round(time.monotonic() - begun, 3)


@contextlib.contextmanager
def _border(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceUnavailable(
            f"cannot verify {name}, {error.filename}: {error.strerror}; run it as root"
        ) from error

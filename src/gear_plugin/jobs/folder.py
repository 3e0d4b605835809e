"""
What a build leaves on disk, `<root>/build/<image>/`:

    files/abc/<61 hex>    every distinct content of the image, by its digest
    build/index.tar       the index layer
    build/config.json     the Gear image's configuration; its digest is the image id
    build/Dockerfile      ADDs it (what the Gear image is, for people)
    build/build.json      the result, which `gear push` reads

Beside it: `.lock-<image>`, held while it is made (exclusive) or pushed
(shared), and `.tmp-<image>~...`, builds on their way or left by a crash.

Crash windows: before the swap only a temporary is left, which the next build
of any image takes away; between the swap's two renames the older build is
gone and the new one not there yet, so the image has to be built again.
Nothing is fsynced: after a power failure `gear push` finds out by the digests.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gear_plugin.errors import BadConfig, Conflict, ImageNotFound, IndexDamaged
from gear_plugin.names import ImageId

_TEMP, _LOCK = ".tmp-", ".lock-"
# No image name has a `~`: without such an end, the temporaries of nginx:1
# would be a prefix of those of nginx:1-alpine.
_TEMP_END = "~"


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What `gear build` made; sizes in bytes."""

    image: str
    gear_image: str
    gear_image_id: str
    layer: str
    """Digest of index.tar: the index layer's diff id."""
    index: str
    """Digest of index.erofs (64 hex digits), which keys the image on a node."""
    manifest: str
    """Digest of the manifest (64 hex digits)."""
    original_id: str
    original_bytes: int
    """Of the layers' tars, uncompressed."""
    layers: int
    files: int
    directories: int
    objects: int
    object_bytes: int
    index_bytes: int
    """Of index.tar, uncompressed."""
    seconds: float
    platform: str = ""
    """`os/architecture[/variant]`."""
    source: str = "engine"
    """`engine`, the path of an archive or folder, `-`, or `docker://REFERENCE`."""
    loaded: bool = True
    """Whether the engine has it; if not, `gear push` needs none either."""
    output: str | None = None
    """The archive that was asked for."""


@dataclass(frozen=True, slots=True)
class BuildFolder:
    """The build of one image; nothing is touched by making this value."""

    path: Path

    @classmethod
    def of(cls, root: Path, image: ImageId) -> BuildFolder:
        """Where the build of *image* (the original's name) stands below Gear's main folder."""
        return cls(root / "build" / image.folder)

    @property
    def files(self) -> Path:
        """The image's regular files, by digest."""
        return self.path / "files"

    @property
    def index_tar(self) -> Path:
        """The index layer."""
        return self.path / "build" / "index.tar"

    @property
    def config(self) -> Path:
        """The Gear image's configuration, byte for byte."""
        return self.path / "build" / "config.json"

    @property
    def dockerfile(self) -> Path:
        """The Dockerfile that ADDs the index layer."""
        return self.path / "build" / "Dockerfile"

    @property
    def _result(self) -> Path:
        return self.path / "build" / "build.json"

    def write_result(self, result: BuildResult) -> None:
        """Keep *result* for `gear push`."""
        self._result.write_text(json.dumps(asdict(result), indent=2) + "\n")

    def _read_result(self) -> BuildResult:
        try:
            return BuildResult(**json.loads(self._result.read_text()))
        except (ValueError, TypeError) as error:
            raise IndexDamaged(f"{self._result} is damaged ({error}); build again") from error

    def glance(self) -> BuildResult | None:
        """
        What was built here, at this moment and without holding it; None: nothing.

        Raises IndexDamaged, and OSError when it may not be read.
        """
        try:
            return self._read_result()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def built_s(self) -> int:
        """When it was made, Unix time."""
        return int(self._result.stat().st_mtime)

    @contextlib.contextmanager
    def replaced(self) -> Iterator[BuildFolder]:
        """
        A new folder that takes the place of this one when the block ends well,
        and its files/ and build/ alone; when it raises, this one is untouched.

        Raises Conflict (being built or pushed now), BadConfig (cannot write there).
        """
        parent = self.path.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            held = _locked(parent, self.path.name, fcntl.LOCK_EX)
        except OSError as error:
            raise BadConfig(f"cannot build in {parent} ({error.strerror}); set --root") from error
        with held:
            _sweep(parent, own=self.path.name)
            prefix = f"{_TEMP}{self.path.name}{_TEMP_END}"
            fresh = BuildFolder(Path(tempfile.mkdtemp(prefix=prefix, dir=parent)))
            aside = fresh.path.with_name(fresh.path.name + "-old")
            try:
                fresh.files.mkdir()
                fresh.index_tar.parent.mkdir()
                yield fresh
                for path in fresh.path.iterdir():
                    if path not in (fresh.files, fresh.index_tar.parent):
                        path.unlink()
                fresh.path.chmod(0o755)
                if self.path.exists():
                    self.path.rename(aside)
                fresh.path.rename(self.path)
            finally:
                for left in (fresh.path, aside):
                    shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def held_for_removal(self) -> Iterator[bool]:
        """
        Give whether anything was built here, which nobody builds or pushes
        during the block; and when it ends well, remove that.

        Raises Conflict (somebody does now), BadConfig (not allowed to).
        """
        if not self.path.exists():
            yield False  # whoever builds it in this moment comes later
            return
        parent = self.path.parent
        try:
            held = _locked(parent, self.path.name, fcntl.LOCK_EX)
        except OSError as error:
            raise BadConfig(f"cannot use {parent} ({error.strerror}); set --root") from error
        with held:
            yield self.path.exists()
            try:
                prefix = f"{_TEMP}{self.path.name}{_TEMP_END}"
                aside = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
                with contextlib.suppress(FileNotFoundError):
                    self.path.rename(aside)
            except OSError as error:
                raise BadConfig(f"cannot remove {self.path} ({error.strerror})") from error
            shutil.rmtree(aside, ignore_errors=True)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[BuildResult]:
        """
        What was built here, which no other build replaces during the block.

        Raises ImageNotFound (never built here), Conflict (being built now),
        IndexDamaged (its record is damaged).
        """
        image = ImageId.from_folder(self.path.name)
        missing = f"{image} was not built in {self.path.parent}; run `gear build {image}` first"
        try:
            held = _locked(self.path.parent, self.path.name, fcntl.LOCK_SH)
        except FileNotFoundError as error:
            raise ImageNotFound(missing) from error
        except OSError as error:
            raise BadConfig(f"cannot use {self.path.parent} ({error.strerror}); set --root") from (
                error
            )
        with held:
            if not self._result.exists():
                raise ImageNotFound(missing)
            yield self._read_result()


def _locked(parent: Path, name: str, kind: int) -> contextlib.closing[_Lock]:
    """Take the lock of the folder *name*, or raise Conflict; freed by closing."""
    lock = _Lock(parent / f"{_LOCK}{name}")
    if not lock.take(kind):
        lock.close()
        raise Conflict(
            f"{ImageId.from_folder(name)} is being built or pushed by another process; "
            "try again when that has ended"
        )
    return contextlib.closing(lock)


class _Lock:
    """A lock file; freed by the kernel when its process ends, and never removed."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def take(self, kind: int) -> bool:
        """Whether the lock was free."""
        try:
            fcntl.flock(self._handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Free it."""
        os.close(self._handle)


def _sweep(parent: Path, *, own: str) -> None:
    """
    Remove the temporaries that no running build can still want.

    Of every image, as nobody may ever build the crashed one again; *own* is
    the one whose lock the caller holds.
    """
    for path in parent.iterdir():
        name, end, _ = path.name.removeprefix(_TEMP).rpartition(_TEMP_END)
        if not path.name.startswith(_TEMP) or not end:
            continue
        with contextlib.closing(_Lock(parent / f"{_LOCK}{name}")) as lock:
            if name == own or lock.take(fcntl.LOCK_EX):
                shutil.rmtree(path, ignore_errors=True)

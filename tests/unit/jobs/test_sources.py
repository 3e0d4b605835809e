"""Building from anywhere: the same image, whichever way it came; and nothing half-made."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.errors import (
    ArchiveMalformed,
    BadInput,
    Conflict,
    ContentCorrupt,
    ContentNotFound,
    GearError,
    ImageNotFound,
    SourceUnavailable,
    StorageFull,
    Unsupported,
)
from gear_plugin.jobs import (
    BuildFolder,
    BuildResult,
    EngineSource,
    FileSource,
    Platform,
    Reference,
    Registry,
    RegistrySource,
    Source,
    StreamSource,
    build,
)
from gear_plugin.names import ImageId
from tests.unit.image.tars import info, tar
from tests.unit.jobs import layouts, saves
from tests.unit.jobs.fakes import FakeEngine, Recorder
from tests.unit.jobs.layouts import COMPRESS, digest
from tests.unit.jobs.registries import FakeRegistry, Reply, client, serving
from tests.unit.jobs.saves import CONFIG, file

IMAGE = ImageId.parse("team/app:1")
LAYERS = [
    tar(info("etc/", type=tarfile.DIRTYPE), file("etc/a", b"same" * 500, mode=0o4755)),
    tar(file("etc/b", b"same" * 500), file("etc/c", bytes(range(256)) * 5000)),
]
AS_IMAGE = layouts.Image("1", LAYERS, CONFIG, "gzip")
SAVED = saves.saved_by_20(str(IMAGE), LAYERS)


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with serving(FakeRegistry()) as found:
        found.add("team/app", AS_IMAGE)
        yield found


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    found = client(tmp_path)
    yield found
    found.close()


def reference(server: FakeRegistry) -> Reference:
    return Reference.parse(f"{server.address}/team/app:1")


def run(root: Path, source: Source, **more: Any) -> BuildResult:
    return build(IMAGE, None, root, Recorder(), source=source, **more)


def test_every_source_gives_the_same_gear_image(
    tmp_path: Path, server: FakeRegistry, registry: Registry
) -> None:
    """
    Byte for byte: the index, and the image id that an engine would give it.
    """
    archive = tmp_path / "saved.tar"
    archive.write_bytes(SAVED)
    later = tmp_path / "later.tar"
    later.write_bytes(saves.saved_by_25(str(IMAGE), LAYERS, compression="zstd"))
    folder = layouts.as_folder(layouts.layout(AS_IMAGE), tmp_path / "layout")
    packed = tmp_path / "oci.tar.gz"
    packed.write_bytes(COMPRESS["gzip"](layouts.as_tar(layouts.layout(AS_IMAGE))))
    sources: list[Source] = [
        EngineSource(FakeEngine({str(IMAGE): SAVED}), IMAGE),
        FileSource(archive, IMAGE),
        FileSource(later, IMAGE),
        FileSource(folder, IMAGE),
        FileSource(packed, IMAGE),
        StreamSource(io.BytesIO(SAVED), IMAGE),
        RegistrySource(registry, reference(server)),
    ]
    results = [run(tmp_path / str(number), source) for number, source in enumerate(sources)]
    assert len({(result.gear_image_id, result.layer) for result in results}) == 1
    assert [result.source for result in results] == [
        *("engine", str(archive), str(later), str(folder), str(packed), "-"),
        f"docker://{server.address}/team/app:1",
    ]
    assert {(result.loaded, result.output, result.platform) for result in results} == {
        (False, None, "linux/amd64")
    }


def test_an_archive_is_read_where_it_lies(tmp_path: Path) -> None:
    """
    Gigabytes are not copied before they are looked at; and it stays as it was.
    """
    archive = tmp_path / "saved.tar"
    archive.write_bytes(SAVED)
    source = FileSource(archive, IMAGE)
    with source.opened(tmp_path / "scratch", Recorder()) as image:
        assert [layer.size for layer in image.layers] == [len(layer) for layer in LAYERS]
    run(tmp_path / "root", source)
    assert archive.read_bytes() == SAVED


def test_a_pull_shows_its_bytes(tmp_path: Path, server: FakeRegistry, registry: Registry) -> None:
    """
    Those on the wire, to the last one; an equal layer comes once.
    """
    server.add("twice", layouts.Image("1", [*LAYERS, *LAYERS], CONFIG, "gzip"))
    progress = Recorder()
    source = RegistrySource(registry, Reference.parse(f"{server.address}/twice:1"))
    build(IMAGE, None, tmp_path, progress, source=source)
    size = sum(len(blob) for blob in AS_IMAGE.blobs)
    assert ("pulling 2 layers", size, size) in progress.steps
    for blob in AS_IMAGE.blobs:
        assert len(server.asked("GET", digest(blob))) == 1


def test_the_archive_that_was_asked_for_is_what_an_engine_loads(tmp_path: Path) -> None:
    """
    With the layer of the build folder, and a configuration that is the original's.
    """
    archive = tmp_path / "saved.tar"
    archive.write_bytes(SAVED)
    target = tmp_path / "gear.tar"
    target.write_text("an older one")
    result = run(tmp_path / "root", FileSource(archive, IMAGE), output=target)
    assert result.output == str(target)
    assert target.stat().st_mode & 0o777 == 0o644
    engine = FakeEngine()
    engine.load(target)
    assert engine.inspect(IMAGE.gear)["Id"] == result.gear_image_id
    assert engine.inspect(IMAGE.gear)["Config"] == CONFIG["config"]
    assert (
        engine.layer(IMAGE.gear) == BuildFolder.of(tmp_path / "root", IMAGE).index_tar.read_bytes()
    )
    stream = io.BytesIO()
    again = run(tmp_path / "again", FileSource(archive, IMAGE), output=stream)
    assert stream.getvalue() == target.read_bytes()
    assert again.output == "-"


def test_an_archive_can_go_into_a_pipe(tmp_path: Path) -> None:
    """
    `gear build --output -`, or a named pipe.
    """
    archive = tmp_path / "saved.tar"
    archive.write_bytes(SAVED)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    run(tmp_path / "root", FileSource(archive, IMAGE), output=pipe)
    reader.join()
    engine = FakeEngine()
    (tmp_path / "copy").write_bytes(read[0])
    engine.load(tmp_path / "copy")


def _closed_pipe() -> Any:
    read_end, write_end = os.pipe()
    os.close(read_end)
    return os.fdopen(write_end, "wb", buffering=0)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda folder: folder, "it is a folder"),
        (lambda folder: folder / "none" / "x.tar", "its folder does not exist"),
        (lambda folder: folder / ("n" * 300), "File name too long"),
        (lambda folder: _closed_pipe(), "cannot write the archive to stdout: Broken pipe"),
    ],
)
def test_an_output_that_cannot_be_written_is_bad_input(
    tmp_path: Path, output: Callable[[Path], Any], words: str
) -> None:
    """
    Told before the work where it can be; nothing half-made is left.
    """
    archive = tmp_path / "saved.tar"
    archive.write_bytes(SAVED)
    target = output(tmp_path)
    with pytest.raises(BadInput, match=words):
        run(tmp_path / "root", FileSource(archive, IMAGE), output=target)
    assert_nothing(tmp_path / "root")
    if not isinstance(target, Path):
        target.close()


def test_an_image_for_another_platform_is_refused(tmp_path: Path) -> None:
    """
    If one was asked for; a lone image is taken as it is otherwise.
    """
    arm = tmp_path / "arm.tar"
    arm.write_bytes(saves.saved_by_20(str(IMAGE), LAYERS, CONFIG | {"architecture": "arm64"}))
    assert run(tmp_path / "root", FileSource(arm, IMAGE)).platform == "linux/arm64"
    wanted = Platform.parse("linux/amd64")
    with pytest.raises(ImageNotFound, match="team/app:1 is for linux/arm64, not for linux/amd64"):
        run(tmp_path / "root", FileSource(arm, IMAGE), platform=wanted)
    run(tmp_path / "root", FileSource(arm, IMAGE), platform=Platform.parse("linux/arm64/v8"))
    windows = tmp_path / "windows.tar"
    windows.write_bytes(saves.saved_by_20(str(IMAGE), LAYERS, CONFIG | {"os": "windows"}))
    with pytest.raises(Unsupported, match="for windows/amd64; Gear carries images for Linux"):
        run(tmp_path / "root", FileSource(windows, IMAGE))


def assert_nothing(root: Path) -> None:
    """No build, no temporary; lock files do not count."""
    left = [path.name for path in (root / "build").glob("*")] if root.exists() else []
    assert [name for name in left if not name.startswith(".lock-")] == []


LARGE = layouts.path_of(AS_IMAGE.blobs[1])


def _cut(files: dict[str, bytes]) -> None:
    files[LARGE] = files[LARGE][:-20]


def _damaged(files: dict[str, bytes]) -> None:
    files[LARGE] = files[LARGE][:200] + bytes(50) + files[LARGE][250:]


def _another(files: dict[str, bytes]) -> None:
    files[LARGE] = COMPRESS["gzip"](LAYERS[0])


def _not_a_tar(files: dict[str, bytes]) -> None:
    image = layouts.Image("1", [b"no tar" * 1000], CONFIG)
    files.clear()
    files |= layouts.layout(image)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_cut, ArchiveMalformed),
        (_damaged, ArchiveMalformed),
        (_another, ContentCorrupt),
        (_not_a_tar, ArchiveMalformed),
    ],
)
@pytest.mark.parametrize("form", ["folder", "archive", "stream"])
def test_damage_in_an_archive_leaves_nothing(
    tmp_path: Path, form: str, spoil: Callable[[dict[str, bytes]], None], expected: type[GearError]
) -> None:
    """
    Cut, overwritten, exchanged: one line, no folder; what was built before stays.
    """
    files = layouts.layout(AS_IMAGE)
    spoil(files)
    source: Source
    if form == "folder":
        source = FileSource(layouts.as_folder(files, tmp_path / "layout"), IMAGE)
    elif form == "archive":
        (tmp_path / "oci.tar").write_bytes(layouts.as_tar(files))
        source = FileSource(tmp_path / "oci.tar", IMAGE)
    else:
        source = StreamSource(io.BytesIO(layouts.as_tar(files)), IMAGE)
    with pytest.raises(expected) as raised:
        run(tmp_path / "root", source, output=tmp_path / "out.tar")
    assert "\n" not in str(raised.value)
    assert_nothing(tmp_path / "root")
    assert not (tmp_path / "out.tar").exists()


def test_an_archive_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """
    A copy that was interrupted is noticed, at whatever byte.
    """
    archive = tmp_path / "saved.tar"
    with tarfile.open(fileobj=io.BytesIO(SAVED)) as found:
        end = max(member.offset_data + member.size for member in found)
    for length in range(0, end, 99_991):
        archive.write_bytes(SAVED[:length])
        with pytest.raises((ArchiveMalformed, ContentCorrupt)):
            run(tmp_path / "root", FileSource(archive, IMAGE))
    assert_nothing(tmp_path / "root")


@pytest.mark.parametrize(
    ("fault", "path", "expected"),
    [
        (Reply(404), "blobs", ContentNotFound),
        (Reply(200, AS_IMAGE.blobs[1][:-1] + b"x"), digest(AS_IMAGE.blobs[1]), GearError),
        (Reply(200, AS_IMAGE.blobs[1], cut=300), digest(AS_IMAGE.blobs[1]), SourceUnavailable),
        (Reply(503), "manifests", SourceUnavailable),
    ],
)
def test_a_registry_that_fails_leaves_nothing(
    tmp_path: Path,
    server: FakeRegistry,
    registry: Registry,
    fault: Reply,
    path: str,
    expected: type[GearError],
) -> None:
    """
    At whatever point of the pull.
    """
    server.ranges = False
    server.fault("GET", path, fault, times=30)
    with pytest.raises(expected):
        run(tmp_path / "root", RegistrySource(registry, reference(server)))
    assert_nothing(tmp_path / "root")


def test_a_layer_in_which_tar_is_damaged_is_refused_whatever_its_digest(
    tmp_path: Path, server: FakeRegistry, registry: Registry
) -> None:
    """
    A digest says that nobody changed it since, not that it was good.
    """
    server.add("team/app", layouts.Image("1", [LAYERS[1][:700_000]], CONFIG, "gzip"))
    with pytest.raises(ArchiveMalformed, match=r"ends too soon|ends within"):
        run(tmp_path / "root", RegistrySource(registry, reference(server)))
    assert_nothing(tmp_path / "root")


@pytest.mark.root
def test_a_full_disk_leaves_nothing_whatever_the_source(
    tmp_path: Path, server: FakeRegistry, registry: Registry
) -> None:
    """
    A real one: while layers are unpacked or pulled, files stored, the archive written.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    folder = layouts.as_folder(layouts.layout(AS_IMAGE), tmp_path / "layout")
    sources: list[Callable[[], Source]] = [
        lambda: FileSource(folder, IMAGE),
        lambda: StreamSource(io.BytesIO(SAVED), IMAGE),
        lambda: RegistrySource(client(tmp_path), reference(server)),
    ]
    disk = tmp_path / "disk"
    disk.mkdir()
    for source in sources:
        outcomes = set()
        for kibibytes in (200, 1500, 2600, 4096):
            with tmpfs(disk, kibibytes):
                try:
                    run(disk, source())
                    outcomes.add("built")
                except StorageFull as error:
                    assert f"no room left in {disk}" in str(error)
                    outcomes.add("full")
                    assert_nothing(disk)
        assert outcomes == {"built", "full"}
    with tmpfs(disk, 8), pytest.raises(StorageFull, match=f"no room left in {disk}"):
        run(tmp_path / "root", FileSource(folder, IMAGE), output=disk / "out.tar")
    assert_nothing(tmp_path / "root")


class tmpfs:  # noqa: N801 - reads as a word of the `with` statement
    """A disk of so many KiB on *folder*."""

    def __init__(self, folder: Path, kibibytes: int) -> None:
        self._folder = folder
        self._size = f"size={kibibytes}k"

    def __enter__(self) -> None:
        words = ["mount", "-t", "tmpfs", "-o", self._size, "tmpfs", str(self._folder)]
        subprocess.run(words, check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self._folder)], check=True)


SLOW = Reply(200, AS_IMAGE.blobs[1], cut=100, hang=True)


def started(tmp_path: Path, server: FakeRegistry) -> subprocess.Popen[str]:
    """`gear build` in a process of its own, in the middle of its pull."""
    server.fault("GET", digest(AS_IMAGE.blobs[1]), SLOW, times=9)
    place = f"docker://{server.address}/team/app:1"
    process = subprocess.Popen(
        [sys.executable, "-m", "gear_plugin", "--root", str(tmp_path / "root")]
        + ["build", "--from", place, str(IMAGE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DOCKER_CONFIG": str(tmp_path)},
    )
    deadline = time.monotonic() + 60
    while not server.asked("GET", digest(AS_IMAGE.blobs[1])):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_an_interrupt_ends_a_build_at_once(tmp_path: Path, server: FakeRegistry) -> None:
    """
    Ctrl-C while a registry hangs: status 130, no traceback, nothing left.
    """
    process = started(tmp_path, server)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    # A stalled registry is waited for 30 s; an interrupt must not be.
    assert time.monotonic() - begun < 25
    assert_nothing(tmp_path / "root")


def test_two_builds_of_one_image_do_not_meet(tmp_path: Path, server: FakeRegistry) -> None:
    """
    The second is refused at once, and what a killed one left is removed by the next.
    """
    process = started(tmp_path, server)
    archive = tmp_path / "saved.tar"
    archive.write_bytes(SAVED)
    with pytest.raises(Conflict, match="team/app:1 is being built or pushed"):
        run(tmp_path / "root", FileSource(archive, IMAGE))
    process.kill()
    process.communicate()
    run(tmp_path / "root", FileSource(archive, IMAGE))
    assert list((tmp_path / "root" / "build").glob(".tmp-*")) == []

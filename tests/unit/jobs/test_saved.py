from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed
from gear_plugin.image import TarReader
from gear_plugin.jobs import saved
from tests.unit.image.tars import info, tar
from tests.unit.jobs import saves
from tests.unit.jobs.saves import CONFIG, config_bytes, file

LOWER = tar(file("a", b"from lower"), file("big", b"x" * 700_000))
UPPER = tar(file("b", b"from upper"))


def write(tmp_path: Path, data: bytes) -> tuple[Path, Path]:
    """The spool and a scratch folder."""
    spool, scratch = tmp_path / "spool", tmp_path / "scratch"
    spool.write_bytes(data)
    scratch.mkdir()
    return spool, scratch


def read_layers(image: saved.SavedImage) -> list[bytes]:
    found = []
    for layer in image.layers:
        with layer.open() as opened:
            found.append(opened.read())
    return found


@pytest.mark.parametrize(
    "data",
    [
        saves.saved_by_20("x:1", [LOWER, UPPER, LOWER]),
        saves.saved_by_25("x:1", [LOWER, UPPER, LOWER]),
        saves.saved_by_25("x:1", [LOWER, UPPER, LOWER], compression="gzip"),
        saves.saved_by_25("x:1", [LOWER, UPPER, LOWER], compression="zstd"),
    ],
    ids=["20.10", "25", "25-gzip", "25-zstd"],
)
def test_layers_and_configuration_of_every_layout(tmp_path: Path, data: bytes) -> None:
    """
    Layers come uncompressed from the lowest up, equal ones as often as they stand.
    """
    with saved.opened(*write(tmp_path, data)) as image:
        assert read_layers(image) == [LOWER, UPPER, LOWER]
        raw = config_bytes([LOWER, UPPER, LOWER], CONFIG)
        assert image.config == json.loads(raw)
        assert image.config_digest == Digest.of(raw)
        assert image.platform == "linux/amd64"


def test_plain_layers_are_not_copied(tmp_path: Path) -> None:
    """
    An image of gigabytes is on the disk once while it is built.
    """
    spool, scratch = write(tmp_path, saves.saved_by_25("x:1", [LOWER, UPPER]))
    with saved.opened(spool, scratch):
        assert list(scratch.iterdir()) == []


def test_two_layers_can_be_read_in_turns(tmp_path: Path) -> None:
    """
    Layers share one open file but no position in it.
    """
    with saved.opened(*write(tmp_path, saves.saved_by_20("x:1", [LOWER, UPPER]))) as image:
        lower, upper = (layer.open() for layer in image.layers)
        with lower, upper:
            one, two = TarReader(lower, seekable=True), TarReader(upper, seekable=True)
            assert [next(iter(reader)).name for reader in (one, two, one)] == [b"a", b"b", b"big"]


def test_a_layer_ends_at_its_end(tmp_path: Path) -> None:
    """
    Reading past a layer gives nothing, not the next member's bytes.
    """
    spool, scratch = write(tmp_path, saves.saved_by_20("x:1", [LOWER, UPPER]))
    with saved.opened(spool, scratch) as image, image.layers[0].open() as opened:
        assert opened.seek(-4, io.SEEK_END) == len(LOWER) - 4
        assert opened.read(100) == LOWER[-4:]
        opened.seek(len(LOWER) + 1000)
        assert opened.read(100) == b""


def test_an_image_without_layers(tmp_path: Path) -> None:
    """
    `FROM scratch` with configuration alone is an image; 20.10 writes null for no layers.
    """
    with saved.opened(*write(tmp_path, saves.saved_by_20("x:1", []))) as image:
        assert image.layers == []


@pytest.mark.parametrize(
    ("config", "platform"),
    [
        ({"os": "linux", "architecture": "arm", "variant": "v7"}, "linux/arm/v7"),
        ({"os": "linux"}, "linux"),
        ({}, ""),
    ],
)
def test_platform_is_what_is_known(tmp_path: Path, config: dict[str, Any], platform: str) -> None:
    """
    Missing fields are left out.
    """
    with saved.opened(*write(tmp_path, saves.saved_by_20("x:1", [UPPER], config))) as image:
        assert image.platform == platform


def listing(value: Any) -> tuple[tarfile.TarInfo, bytes]:
    return file("manifest.json", json.dumps(value).encode())


ENTRY = {"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l/layer.tar"]}
GOOD = (file("c.json", b"{}"), file("l/layer.tar", UPPER))
CUT_GZIP = saves.COMPRESS["gzip"](LOWER)[:-9]
BAD_GZIP = CUT_GZIP[:30] + bytes(30) + CUT_GZIP[60:]
CUT_ZSTD = saves.COMPRESS["zstd"](UPPER)[:-3]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no tar at all" * 100,
        tar(*GOOD),
        tar(*GOOD, listing([])),
        tar(*GOOD, listing([ENTRY, ENTRY])),
        tar(*GOOD, listing({"a": 1})),
        tar(*GOOD, listing([["Config"]])),
        tar(*GOOD, listing([ENTRY | {"Layers": ["elsewhere"]}])),
        tar(*GOOD, listing([ENTRY | {"Config": "elsewhere"}])),
        tar(*GOOD, listing([ENTRY | {"Config": None}])),
        tar(*GOOD, listing([ENTRY | {"Layers": 7}])),
        tar(*GOOD, file("manifest.json", b"\xff{")),
        tar(file("c.json", b"[]"), GOOD[1], listing([ENTRY])),
        tar(
            GOOD[0],
            info("l/layer.tar", type=tarfile.SYMTYPE, linkname="../l/layer.tar"),
            listing([ENTRY]),
        ),
        tar(
            GOOD[0],
            info("l/layer.tar", type=tarfile.SYMTYPE, linkname="../../etc/passwd"),
            listing([ENTRY]),
        ),
        tar(GOOD[0], file("l/layer.tar", CUT_GZIP), listing([ENTRY])),
        tar(GOOD[0], file("l/layer.tar", BAD_GZIP), listing([ENTRY])),
        tar(GOOD[0], file("l/layer.tar", b"\x28\xb5\x2f\xfd" + b"rubbish" * 9), listing([ENTRY])),
        saves.saved_by_20("x:1", [LOWER])[:-12_000],
    ],
)
def test_what_no_engine_writes_is_refused(tmp_path: Path, data: bytes) -> None:
    """
    One clear error, whatever is wrong with the archive.
    """
    with (
        pytest.raises(ArchiveMalformed) as raised,
        saved.opened(*write(tmp_path, data)),
    ):
        pass
    assert "\n" not in str(raised.value)

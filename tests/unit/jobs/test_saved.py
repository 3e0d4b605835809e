from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import (
    ArchiveMalformed,
    BadInput,
    ContentCorrupt,
    Damaged,
    GearError,
    ImageNotFound,
    Unsupported,
)
from gear_plugin.image import TarReader
from gear_plugin.jobs import Platform, saved
from gear_plugin.jobs.references import Wish
from gear_plugin.names import ImageId
from tests.unit.image.tars import info, tar
from tests.unit.jobs import layouts, saves
from tests.unit.jobs.fakes import Recorder
from tests.unit.jobs.layouts import COMPRESS, config_bytes
from tests.unit.jobs.saves import CONFIG, file

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
PLAIN_CONFIG = file("c.json", config_bytes([UPPER], CONFIG))
LOWER_CONFIG = file("c.json", config_bytes([LOWER], CONFIG))
GOOD = (PLAIN_CONFIG, file("l/layer.tar", UPPER))
CUT_GZIP = COMPRESS["gzip"](LOWER)[:-9]
BAD_GZIP = CUT_GZIP[:30] + bytes(30) + CUT_GZIP[60:]
BAD_ZSTD = b"\x28\xb5\x2f\xfd" + b"rubbish" * 9


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"no tar at all" * 100, "not a number"),
        (tar(*GOOD), "names manifest.json, which it does not hold"),
        (tar(*GOOD, listing([])), "lists no images"),
        (tar(*GOOD, listing({"a": 1})), "not understood"),
        (tar(*GOOD, listing([["Config"]])), "not understood"),
        (tar(*GOOD, listing([ENTRY | {"Layers": ["elsewhere"]}])), "names elsewhere"),
        (tar(*GOOD, listing([ENTRY | {"Config": "elsewhere"}])), "names elsewhere"),
        (tar(*GOOD, listing([ENTRY | {"Config": None}])), "names None"),
        (tar(*GOOD, listing([ENTRY | {"Layers": 7}])), "not understood"),
        (tar(*GOOD, listing([ENTRY | {"Layers": []}])), "0 layers, but 1 diff_ids"),
        (tar(*GOOD, file("manifest.json", b"\xff{")), "not understood"),
        (tar(file("c.json", b"[]"), GOOD[1], listing([ENTRY])), "no object"),
        (tar(file("c.json", b"{}"), GOOD[1], listing([ENTRY])), "without proper diff_ids"),
        (
            tar(
                PLAIN_CONFIG,
                info("l/layer.tar", type=tarfile.SYMTYPE, linkname="../l/layer.tar"),
                listing([ENTRY]),
            ),
            "names l/layer.tar",
        ),
        (
            tar(
                PLAIN_CONFIG,
                info("l/layer.tar", type=tarfile.SYMTYPE, linkname="../../etc/passwd"),
                listing([ENTRY]),
            ),
            "names l/layer.tar",
        ),
        (
            tar(PLAIN_CONFIG, info("l/layer.tar", type=tarfile.DIRTYPE), listing([ENTRY])),
            "names l/layer.tar",
        ),
        (tar(LOWER_CONFIG, file("l/layer.tar", CUT_GZIP), listing([ENTRY])), "no end"),
        (tar(LOWER_CONFIG, file("l/layer.tar", BAD_GZIP), listing([ENTRY])), "damaged gzip"),
        (tar(LOWER_CONFIG, file("l/layer.tar", BAD_ZSTD), listing([ENTRY])), "damaged zstd"),
        (saves.saved_by_20("x:1", [LOWER])[:-12_000], "ends too soon"),
    ],
)
def test_what_no_engine_writes_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    """
    One clear error, whatever is wrong with the archive.
    """
    with (
        pytest.raises(ArchiveMalformed, match=words) as raised,
        saved.opened(*write(tmp_path, data)),
    ):
        pass
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "layer",
    [
        UPPER[:-1] + b"x",
        UPPER[:-512],
        COMPRESS["gzip"](LOWER),
        COMPRESS["zstd"](LOWER),
        COMPRESS["zstd"](UPPER)[:-3],
    ],
    ids=["changed", "cut", "another, gzip", "another, zstd", "cut zstd"],
)
def test_a_layer_that_is_not_what_its_digest_says_is_refused(tmp_path: Path, layer: bytes) -> None:
    """
    A flipped bit in an archive that lay on some disk for a year is noticed.
    """
    data = tar(PLAIN_CONFIG, file("l/layer.tar", layer), listing([ENTRY]))
    with (
        pytest.raises(ContentCorrupt, match="damaged or cut short: it is not sha256:"),
        saved.opened(*write(tmp_path, data)),
    ):
        pass


def test_an_engine_s_plain_layers_are_not_hashed_again(tmp_path: Path) -> None:
    """
    It has checked them while it saved; what is unpacked here is checked all the same.
    """
    changed = tar(PLAIN_CONFIG, file("l/layer.tar", LOWER), listing([ENTRY]))
    spool, scratch = write(tmp_path, changed)
    with saved.opened(spool, scratch, known_good=True) as image:
        assert read_layers(image) == [LOWER]
    packed = tar(PLAIN_CONFIG, file("l/layer.tar", COMPRESS["gzip"](LOWER)), listing([ENTRY]))
    spool.write_bytes(packed)
    with pytest.raises(ContentCorrupt), saved.opened(spool, scratch, known_good=True):
        pass


def wish(name: str = "x:1", platform: str = "linux/amd64") -> Wish:
    return Wish(ImageId.parse(name), lambda: Platform.parse(platform), "the archive")


def opened(path: Path, tmp_path: Path, wanted: Wish) -> saved.SavedImage:
    """The image, whose layers are closed again."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    with saved.opened(path, scratch, wanted, Recorder()) as image:
        return image


def amd64(name: str = "x:1", content: bytes = b"amd64", **fields: Any) -> layouts.Image:
    config = CONFIG | {"config": {"Labels": {"is": content.decode()}}} | fields.pop("platform", {})
    return layouts.Image(name, [tar(file("a", content))], config, **fields)


def arm(name: str = "x:1", variant: str = "v7", **fields: Any) -> layouts.Image:
    platform = {"architecture": "arm", "variant": variant}
    return amd64(name, b"arm" + variant.encode(), platform=platform, **fields)


def label(image: saved.SavedImage) -> str:
    return str(image.config["config"]["Labels"]["is"])


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz", "tar.zst"])
@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
def test_oci_layouts_in_every_form(tmp_path: Path, form: str, compression: str) -> None:
    """
    As a folder, an archive, or an archive that was compressed as a whole.
    """
    layers = [LOWER, UPPER, LOWER]
    files = layouts.layout(layouts.Image("x:1", layers, CONFIG, compression))
    path = tmp_path / "layout"
    pack = {"tar": "plain", "tar.gz": "gzip", "tar.zst": "zstd"}
    if form == "folder":
        layouts.as_folder(files, path)
    else:
        path.write_bytes(COMPRESS[pack[form]](layouts.as_tar(files)))
    (tmp_path / "scratch").mkdir()
    with saved.opened(path, tmp_path / "scratch", wish(), Recorder()) as image:
        assert read_layers(image) == layers
        assert image.config_digest == Digest.of(config_bytes(layers, CONFIG))


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["docker.io/library/app:1", "docker.io/library/app:2"], "app:2", "1"),
        (["registry.example/a:1", "registry.example/b:1"], "registry.example/a:1", "0"),
        (["1", "2"], "anything:2", "1"),
        (["other:7"], "app:1", "0"),
        ([""], "app:1", "0"),
    ],
)
def test_a_name_picks_one_of_several_images(
    tmp_path: Path, names: list[str], wanted: str, found: str
) -> None:
    """
    By the whole name as docker reads it, or by the tag alone; a lone image needs none.
    """
    images = [amd64(name, str(number).encode()) for number, name in enumerate(names)]
    folder = layouts.as_folder(layouts.layout(*images), tmp_path / "layout")
    assert label(opened(folder, tmp_path, wish(wanted))) == found


def test_a_docker_archive_with_several_images_needs_the_name(tmp_path: Path) -> None:
    """
    `docker save a b` is one archive; the error lists what there is.
    """
    configs = [amd64("", name.encode()) for name in ("one", "two")]
    members = [
        *(file(f"{n}.json", image.raw_config) for n, image in enumerate(configs)),
        *(file(f"{n}.tar", image.layers[0]) for n, image in enumerate(configs)),
        listing(
            [
                {"Config": "0.json", "RepoTags": ["library/a:1"], "Layers": ["0.tar"]},
                {"Config": "1.json", "RepoTags": None, "Layers": ["1.tar"]},
                {"Config": "1.json", "RepoTags": ["b:1", "b:2"], "Layers": ["1.tar"]},
            ]
        ),
    ]
    path = tmp_path / "archive"
    path.write_bytes(tar(*members))
    assert label(opened(path, tmp_path, wish("docker.io/a:1"))) == "one"
    assert label(opened(path, tmp_path, wish("b:2"))) == "two"
    words = "holds 3 images, and not c:1; it has: b:1, b:2, library/a:1"
    with pytest.raises(ImageNotFound, match=words):
        opened(path, tmp_path, wish("c:1"))


def test_a_layout_with_several_images_needs_the_name(tmp_path: Path) -> None:
    """
    The error lists what there is.
    """
    files = layouts.layout(amd64("a:1", b"a"), amd64("b:1", b"b"))
    folder = layouts.as_folder(files, tmp_path / "layout")
    with pytest.raises(ImageNotFound, match=r"holds 2 images, and not c:1; it has: a:1, b:1"):
        opened(folder, tmp_path, wish("c:1"))


@pytest.mark.parametrize(
    ("platform", "found"),
    [
        ("linux/amd64", "amd64"),
        ("linux/arm/v7", "armv7"),
        ("linux/arm", "armv7"),
        ("linux/arm/v6", "armv6"),
        ("linux/arm/v8", "armv7"),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_a_multi_platform_image_gives_what_was_asked_for(
    tmp_path: Path, platform: str, found: str, nested: bool
) -> None:
    """
    Whether its platforms lie in an index of their own or in index.json; attestations never count.
    """
    images = (arm(variant="v6"), amd64(), arm())
    files = layouts.multi_platform("x:1", *images) if nested else layouts.layout(*images)
    folder = layouts.as_folder(files, tmp_path / "layout")
    assert label(opened(folder, tmp_path, wish(platform=platform))) == found


def test_a_platform_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    """
    Never another architecture unasked.
    """
    files = layouts.multi_platform("x:1", arm(variant="v6"), arm())
    folder = layouts.as_folder(files, tmp_path / "layout")
    words = r"\(--platform\); it has: linux/arm/v6, linux/arm/v7$"
    for platform in ("linux/amd64", "linux/arm64", "linux/arm/v5", "windows/arm/v7"):
        with pytest.raises(ImageNotFound, match=words):
            opened(folder, tmp_path, wish(platform=platform))


def test_a_single_image_is_not_asked_for_its_platform(tmp_path: Path) -> None:
    """
    Asking may mean to wait for an engine.
    """
    entry = layouts.descriptor(amd64().manifest, layouts.MANIFEST)
    files = layouts.layout(amd64(), top=layouts.index_bytes(entry))
    folder = layouts.as_folder(files, tmp_path / "layout")

    def never() -> Platform:
        raise AssertionError("asked")

    assert label(opened(folder, tmp_path, Wish(ImageId.parse("x:1"), never, "it"))) == "amd64"


_ENCRYPTED = layouts.LAYER + "+gzip+encrypted"
_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (amd64(layer_type=_ENCRYPTED), "an encrypted layer"),
        (amd64(layer_type=_FOREIGN), "a foreign layer"),
        (amd64(layer_type=_NONDISTRIBUTABLE), "a foreign layer"),
        (amd64(layer_type="application/x-squashfs"), "an unknown kind"),
        (
            amd64(config_type="application/vnd.cncf.helm.config.v1+json"),
            "no container image but 'application/vnd.cncf.helm.config.v1",
        ),
        (amd64(manifest_fields={"config": {"digest": "sha512:00", "size": 1}}), "SHA-256 alone"),
    ],
)
def test_what_gear_cannot_carry_is_said_in_one_line(
    tmp_path: Path, image: layouts.Image, words: str
) -> None:
    """
    Encrypted and foreign layers, and artifacts that are no images.
    """
    folder = layouts.as_folder(layouts.layout(image), tmp_path / "layout")
    with pytest.raises(Unsupported, match=words) as raised:
        opened(folder, tmp_path, wish())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([*GOOD, listing([ENTRY | {"LayerSources": {"sha256:0": {}}}])], "foreign layers"),
        ([*GOOD, file("repositories", b"{}")], "before 1.10"),
        (
            [PLAIN_CONFIG, file("l/layer.tar", b"BZh91AY&SY"), listing([ENTRY])],
            "compressed with bzip2",
        ),
        (
            [PLAIN_CONFIG, file("l/layer.tar", b"\xfd7zXZ\0rest"), listing([ENTRY])],
            "compressed with xz",
        ),
    ],
)
def test_archives_that_gear_cannot_read_say_why(
    tmp_path: Path, members: list[Any], words: str
) -> None:
    """
    Well-formed, but foreign, too old, or packed in another way.
    """
    with pytest.raises(Unsupported, match=words), saved.opened(*write(tmp_path, tar(*members))):
        pass


def _lacks_a_layer(files: dict[str, bytes]) -> None:
    del files[layouts.path_of(amd64().blobs[0])]


def _wrong_config(files: dict[str, bytes]) -> None:
    files[layouts.path_of(amd64().raw_config)] += b" "


def _wrong_manifest(files: dict[str, bytes]) -> None:
    files[layouts.path_of(amd64().manifest)] += b" "


def _no_index(files: dict[str, bytes]) -> None:
    files["index.json"] = b"{}"


def _index_is_no_json(files: dict[str, bytes]) -> None:
    files["index.json"] = b"\x00"


def _bad_digest(files: dict[str, bytes]) -> None:
    files["index.json"] = files["index.json"].replace(b"sha256:", b"sha256:../../")


def _index_without_end(files: dict[str, bytes]) -> None:
    inner = files["index.json"]
    for _ in range(5):
        files[layouts.path_of(inner)] = inner
        inner = layouts.index_bytes(layouts.descriptor(inner, layouts.INDEX))
    files["index.json"] = inner


@pytest.mark.parametrize(
    ("damage", "expected", "words"),
    [
        (_lacks_a_layer, ArchiveMalformed, "names blobs/sha256/.*, which it does not hold"),
        (_wrong_config, ContentCorrupt, "a blob is not sha256"),
        (_wrong_manifest, ContentCorrupt, "a blob is not sha256"),
        (_no_index, ArchiveMalformed, "without a list of manifests"),
        (_index_is_no_json, ArchiveMalformed, "not understood as JSON"),
        (_bad_digest, ArchiveMalformed, "malformed descriptor"),
        (_index_without_end, ArchiveMalformed, "an index in an index in an index"),
    ],
)
def test_damaged_layouts_are_refused(
    tmp_path: Path, damage: Any, expected: type[GearError], words: str
) -> None:
    """
    Everything is checked against the digest that names it.
    """
    files = layouts.layout(amd64())
    damage(files)
    folder = layouts.as_folder(files, tmp_path / "layout")
    with pytest.raises(expected, match=words) as raised:
        opened(folder, tmp_path, wish())
    assert isinstance(raised.value, Damaged)


def test_a_folder_or_file_that_is_no_image_says_so(tmp_path: Path) -> None:
    """
    An empty folder, a path that cannot be read.
    """
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no OCI layout: it holds no file 'oci-layout'"):
        opened(tmp_path / "empty", tmp_path, wish())
    with pytest.raises(BadInput, match=r"cannot read .*: No such file"):
        opened(tmp_path / "nothing", tmp_path, wish())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", r"\A{} is empty"),
        (b"no tar at all\n" * 99, r"\A{} is no image archive, or damaged: "),
        (saves.saved_by_20("x:1", [LOWER])[:-20_000], r"\A{} is no image archive, or damaged: "),
    ],
    ids=["empty", "text", "cut short"],
)
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    """
    What `docker save` writes when it fails, a file of another kind, half an archive.
    """
    spool, _ = write(tmp_path, data)
    with pytest.raises(ArchiveMalformed, match=words.format(wish().place)):
        opened(spool, tmp_path, wish())


def test_equal_layers_are_unpacked_once(tmp_path: Path) -> None:
    """
    Builders write the empty layer by the dozen.
    """
    data = saves.saved_by_25("x:1", [UPPER] * 7 + [LOWER], compression="gzip")
    spool, scratch = write(tmp_path, data)
    with saved.opened(spool, scratch) as image:
        assert len(list(scratch.iterdir())) == 2
        assert read_layers(image) == [UPPER] * 7 + [LOWER]


def test_progress_counts_what_is_read(tmp_path: Path) -> None:
    """
    The bytes as they lie there, so that the bar ends at its end.
    """
    spool, scratch = write(tmp_path, saves.saved_by_25("x:1", [LOWER, UPPER], compression="gzip"))
    size = sum(len(COMPRESS["gzip"](layer)) for layer in (LOWER, UPPER))
    progress = Recorder()
    with saved.opened(spool, scratch, None, progress):
        assert progress.steps == [("reading 2 layers", size, size)]

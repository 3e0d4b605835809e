"""The suite that every catalog passes (`catalog/base.py`)."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.catalog import Catalog, ImageRecord, MemoryCatalog, open_catalog
from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import BadDigest, ContentNotFound, ImageNotFound
from gear_plugin.names import ImageId

NGINX = ImageId.parse("library/nginx:1.25")
PYTHON = ImageId.parse("python:3.11")


def record(image: ImageId, **changes: object) -> ImageRecord:
    plain = ImageRecord(
        image=image,
        gear_image=image.gear,
        index=Digest.of(b"index"),
        original=Digest.of(b"original"),
        manifest=Digest.of(b"manifest"),
        objects=2,
        size_bytes=2**40,
        created_s=1_700_000_000,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def objects(image: ImageId, *paths: bytes, salt: bytes = b"") -> dict[str, Digest]:
    return {object_id(str(image), path): Digest.of(path + salt) for path in paths}


@pytest.fixture(params=["memory", "sqlite", "etcd"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """Each of them; the etcd is a real one."""
    catalog: Catalog
    match request.param:
        case "memory":
            catalog = MemoryCatalog()
        case "sqlite":
            catalog = open_catalog(f"sqlite://{tmp_path}/catalog")
        case _:
            catalog = open_catalog(request.getfixturevalue("etcd_url"))
    yield catalog
    catalog.close()


def test_record_comes_back(catalog: Catalog) -> None:
    """Every field, as it was put."""
    catalog.put_image(record(NGINX), objects(NGINX, b"a", b"b"))
    assert catalog.get_image(NGINX) == record(NGINX)


def test_oids_resolve(catalog: Catalog) -> None:
    """Each path of each image has its own content."""
    catalog.put_image(record(NGINX), objects(NGINX, b"a", b"b"))
    catalog.put_image(record(PYTHON), objects(PYTHON, b"a", salt=b"!"))
    assert catalog.resolve(object_id(str(NGINX), b"a")) == Digest.of(b"a")
    assert catalog.resolve(object_id(str(NGINX), b"b")) == Digest.of(b"b")
    assert catalog.resolve(object_id(str(PYTHON), b"a")) == Digest.of(b"a!")


def test_objects_of_are_distinct(catalog: Catalog) -> None:
    """Two paths with one content are one object; other images' are not among them."""
    one, two = object_id(str(NGINX), b"1"), object_id(str(NGINX), b"2")
    catalog.put_image(record(NGINX), {one: Digest.of(b"x"), two: Digest.of(b"x")})
    catalog.put_image(record(PYTHON), objects(PYTHON, b"y"))
    assert catalog.objects_of(NGINX) == {Digest.of(b"x")}


def test_image_without_files(catalog: Catalog) -> None:
    """An image may have no regular file at all."""
    catalog.put_image(record(NGINX, objects=0), {})
    assert catalog.objects_of(NGINX) == frozenset()


def test_putting_again_replaces_all(catalog: Catalog) -> None:
    """The newer push counts: its record, its objects, and none that only the older had."""
    catalog.put_image(record(NGINX), objects(NGINX, b"gone", b"kept"))
    newer = record(NGINX, index=Digest.of(b"other"), created_s=1_800_000_000)
    catalog.put_image(newer, objects(NGINX, b"kept", b"new", salt=b"2"))
    assert catalog.list_images() == [newer]
    assert catalog.objects_of(NGINX) == {Digest.of(b"kept2"), Digest.of(b"new2")}
    with pytest.raises(ContentNotFound):
        catalog.resolve(object_id(str(NGINX), b"gone"))


def test_unknown_names(catalog: Catalog) -> None:
    """Each call says which thing it does not know."""
    with pytest.raises(ImageNotFound, match="nginx"):
        catalog.get_image(NGINX)
    with pytest.raises(ImageNotFound, match="nginx"):
        catalog.objects_of(NGINX)
    with pytest.raises(ContentNotFound, match=object_id("x:y", b"z")):
        catalog.resolve(object_id("x:y", b"z"))
    assert catalog.remove_image(NGINX) is False
    assert catalog.list_images() == []


@pytest.mark.parametrize("oid", ["", "xyz", "A" * 64, "0" * 63])
def test_malformed_oids_are_refused(catalog: Catalog, oid: str) -> None:
    """In both directions, and nothing is recorded."""
    with pytest.raises(BadDigest):
        catalog.resolve(oid)
    with pytest.raises(BadDigest):
        catalog.put_image(record(NGINX), {oid: Digest.of(b"x")})
    assert catalog.list_images() == []


def test_remove_takes_the_objects_along(catalog: Catalog) -> None:
    """The image's record and OIDs go; the other image's stay."""
    catalog.put_image(record(NGINX), objects(NGINX, b"a"))
    catalog.put_image(record(PYTHON), objects(PYTHON, b"a"))
    assert catalog.remove_image(NGINX) is True
    assert catalog.list_images() == [record(PYTHON)]
    with pytest.raises(ContentNotFound):
        catalog.resolve(object_id(str(NGINX), b"a"))
    assert catalog.resolve(object_id(str(PYTHON), b"a")) == Digest.of(b"a")


def test_list_is_by_name(catalog: Catalog) -> None:
    """By name, then tag."""
    names = ["b:1", "a:2", "a:1", "a/b:1"]
    for name in names:
        catalog.put_image(record(ImageId.parse(name)), {})
    assert [str(found.image) for found in catalog.list_images()] == ["a:1", "a:2", "a/b:1", "b:1"]


def test_many_threads(catalog: Catalog) -> None:
    """Writers and readers at once; a record that is seen has all its objects."""
    paths = [b"%d" % number for number in range(50)]
    failures: list[object] = []

    def work(number: int) -> None:
        image = ImageId("shared", "1") if number % 2 else ImageId(f"own{number}", "1")
        for _ in range(5):
            catalog.put_image(record(image), objects(image, *paths))
            if len(catalog.objects_of(image)) != len(paths):
                failures.append(image)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(catalog.list_images()) == 4


def test_thousands_of_paths(catalog: Catalog) -> None:
    """Real images have tens of thousands: all are there, and all can be replaced."""
    paths = [b"usr/lib/%d" % number for number in range(9000)]
    for salt in (b"1", b"2"):
        mine = objects(NGINX, *paths, salt=salt)
        catalog.put_image(record(NGINX), mine)
        assert catalog.objects_of(NGINX) == set(mine.values())
        for oid in list(mine)[::900]:
            assert catalog.resolve(oid) == mine[oid]


def test_a_reader_sees_one_push_or_the_other(catalog: Catalog) -> None:
    """While an image is replaced, its objects are all the older's or all the newer's."""
    paths = [b"%d" % number for number in range(300)]
    versions = [objects(NGINX, *paths, salt=salt) for salt in (b"1", b"2")]
    catalog.put_image(record(NGINX), versions[0])
    is_over = threading.Event()
    failures: list[object] = []

    def read() -> None:
        whole = [set(version.values()) for version in versions]
        oid = object_id(str(NGINX), b"7")
        while not is_over.is_set():
            if catalog.objects_of(NGINX) not in whole:
                failures.append("objects of both")
            if catalog.resolve(oid) not in (versions[0][oid], versions[1][oid]):
                failures.append("neither's content")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 6):
            catalog.put_image(record(NGINX, created_s=number), versions[number % 2])
    finally:
        is_over.set()
        reader.join()
    assert failures == []


def test_a_loose_object_resolves(catalog: Catalog) -> None:
    """A name that no image has; the later of two counts."""
    oid = object_id(str(NGINX), b"a")
    catalog.name_object(oid, Digest.of(b"1"))
    assert catalog.resolve(oid) == Digest.of(b"1")
    catalog.name_object(oid, Digest.of(b"2"))
    assert catalog.resolve(oid) == Digest.of(b"2")
    assert catalog.loose_objects() == {Digest.of(b"2")}
    assert catalog.list_images() == []


def test_an_image_comes_before_a_loose_object(catalog: Catalog) -> None:
    """What was pushed cannot be changed one object at a time."""
    (oid,) = mine = objects(NGINX, b"a")
    catalog.put_image(record(NGINX), mine)
    catalog.name_object(oid, Digest.of(b"other"))
    assert catalog.resolve(oid) == mine[oid]
    assert catalog.objects_of(NGINX) == set(mine.values())
    assert catalog.loose_objects() == {Digest.of(b"other")}


@pytest.mark.parametrize("is_repeated", [False, True])
def test_a_push_takes_its_loose_objects_over(catalog: Catalog, is_repeated: bool) -> None:
    """Of the image's own names none stays behind, when it goes none comes back."""
    mine = objects(NGINX, b"a", b"b")
    if is_repeated:
        catalog.put_image(record(NGINX), mine)
    for oid in mine:
        catalog.name_object(oid, Digest.of(b"loose"))
    other = object_id(str(PYTHON), b"a")
    catalog.name_object(other, Digest.of(b"other"))
    catalog.put_image(record(NGINX), mine)
    assert catalog.loose_objects() == {Digest.of(b"other")}
    catalog.remove_image(NGINX)
    for oid in mine:
        with pytest.raises(ContentNotFound):
            catalog.resolve(oid)
    assert catalog.resolve(other) == Digest.of(b"other")


def test_a_malformed_loose_name_is_refused(catalog: Catalog) -> None:
    """As everywhere."""
    with pytest.raises(BadDigest):
        catalog.name_object("xyz", Digest.of(b"x"))
    assert catalog.loose_objects() == frozenset()

"""One image's record and its objects, in versions."""

from __future__ import annotations

from gear_plugin.catalog import Catalog, ImageRecord
from gear_plugin.digest import Digest, object_id
from gear_plugin.names import ImageId

IMAGE = ImageId("library/nginx", "1")


def record(version: int, image: ImageId = IMAGE) -> ImageRecord:
    """Version *version* of the image's record."""
    return ImageRecord(
        image=image,
        gear_image=image.gear,
        index=Digest.of(b"index %d" % version),
        original=Digest.of(b"original"),
        manifest=Digest.of(b"manifest"),
        objects=3,
        size_bytes=1,
        created_s=version,
    )


def objects(version: int, image: ImageId = IMAGE, count: int = 3) -> dict[str, Digest]:
    """*count* paths with content of *version*; two versions differ in one path's name."""
    paths = [b"p%d" % number for number in range(count - 1)] + [b"only %d" % version]
    return {object_id(str(image), path): Digest.of(path + b"%d" % version) for path in paths}


def check(catalog: Catalog, version: int, *others: int) -> None:
    """The catalog has *version*, whole, and of *others* nothing that it has not."""
    assert catalog.get_image(IMAGE) == record(version)
    assert catalog.objects_of(IMAGE) == set(objects(version).values())
    for oid, content in objects(version).items():
        assert catalog.resolve(oid) == content
    for other in others:
        for oid in objects(other).keys() - objects(version).keys():
            assert_unknown(catalog, oid)


def assert_unknown(catalog: Catalog, oid: str) -> None:
    """No image has the object."""
    from gear_plugin.errors import ContentNotFound

    try:
        catalog.resolve(oid)
    except ContentNotFound:
        return
    raise AssertionError(f"{oid} resolves")

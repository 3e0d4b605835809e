"""Image names and layer ids: what parses, what is refused, what can be undone."""

from __future__ import annotations

import pytest

from gear_plugin.errors import BadName
from gear_plugin.names import ImageId, parse_layer_id


@pytest.mark.parametrize(
    ("text", "name", "tag"),
    [
        ("nginx", "nginx", "latest"),
        ("nginx:1.25", "nginx", "1.25"),
        ("library/nginx:1.25", "library/nginx", "1.25"),
        ("registry:5000/nginx", "registry:5000/nginx", "latest"),
        ("127.0.0.1:5000/a/b_c/d-e__f:T.a-g_1", "127.0.0.1:5000/a/b_c/d-e__f", "T.a-g_1"),
        ("[::1]:5000/nginx:x", "[::1]:5000/nginx", "x"),
        ("nginx-gear:1", "nginx-gear", "1"),
    ],
)
def test_image_names_parse(text: str, name: str, tag: str) -> None:
    """The name is kept as typed; only a missing tag is added."""
    image = ImageId.parse(text)
    assert (image.name, image.tag) == (name, tag)
    assert str(image) == f"{name}:{tag}"
    assert ImageId.parse(str(image)) == image


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "nginx:",
        ":1.25",
        "Nginx",
        "nginx:1.25:x",
        "nginx@sha256:" + "0" * 64,
        "../etc",
        "/nginx",
        "nginx/",
        "a//b",
        "nginx:.tag",
        "nginx:" + "x" * 129,
        "x" * 300,
        "nginx\n",
        "nginx:1\n",
        "nginx 1",
        "-nginx",
        "a..b",
    ],
)
def test_other_image_names_are_refused(text: str) -> None:
    """Nothing that could be a path, an option or two names gets past the border."""
    with pytest.raises(BadName):
        ImageId.parse(text)


def test_gear_name_and_back() -> None:
    """`<name>-gear:<tag>` belongs to `<name>:<tag>`."""
    image = ImageId.parse("registry:5000/nginx:1.25")
    assert str(image.gear) == "registry:5000/nginx-gear:1.25"
    assert image.gear.is_gear
    assert not image.is_gear
    assert image.gear.original == image


@pytest.mark.parametrize("text", ["nginx", "gear", "gear-nginx"])
def test_only_gear_names_have_an_original(text: str) -> None:
    """The message shows the form."""
    with pytest.raises(BadName, match="-gear"):
        _ = ImageId.parse(text).original


@pytest.mark.parametrize("text", ["nginx", "registry:5000/a/b_c:1.25", "[::1]:5000/nginx:x"])
def test_folder_is_one_safe_name_and_can_be_undone(text: str) -> None:
    """One path component, without what overlayfs options split at."""
    image = ImageId.parse(text)
    assert not set("/:,\\") & set(image.folder)
    assert ImageId.from_folder(image.folder) == image


def test_folders_of_different_images_differ() -> None:
    """Also where only the separators tell them apart."""
    texts = ["a/b:1", "a-b:1", "a_b:1", "a.b:1", "a/b:2"]
    assert len({ImageId.parse(text).folder for text in texts}) == len(texts)


@pytest.mark.parametrize("text", ["0" * 64, "0" * 64 + "-init", "abc123", "Base", "a.b_c-d"])
def test_layer_ids_parse(text: str) -> None:
    """dockerd's, BuildKit's, and the short words of moby's own tests."""
    assert parse_layer_id(text) == text


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a/b", "../x", "a b", "x\n", "x" * 201, "a\0b", ".tmp-0", ".empty"],
)
def test_other_layer_ids_are_refused(text: str) -> None:
    """An id is a file name that is not the driver's own, and nothing else."""
    with pytest.raises(BadName):
        parse_layer_id(text)

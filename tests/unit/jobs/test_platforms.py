from __future__ import annotations

import pytest

from gear_plugin.errors import BadInput
from gear_plugin.jobs.platforms import Platform, choose


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/amd64/v1", Platform("linux", "amd64")),
        ("linux/amd64/v3", Platform("linux", "amd64", "v3")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm/v7", Platform("linux", "arm", "v7")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/armv6l", Platform("linux", "arm", "v6")),
        ("linux/i686", Platform("linux", "386")),
        ("linux/riscv64", Platform("linux", "riscv64")),
    ],
)
def test_names_of_go_and_of_uname_mean_the_same(text: str, platform: Platform) -> None:
    """
    In any case of letters; a variant that says nothing is left out.
    """
    assert Platform.parse(text) == platform
    assert Platform.parse(str(platform)) == platform


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "li nux/arm"])
def test_what_is_no_platform_is_bad_input(text: str) -> None:
    """
    The message has an example.
    """
    with pytest.raises(BadInput, match=r"not a platform \(such as linux/amd64"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/amd64/v3", ["linux/amd64"], 0),
        ("linux/amd64", ["linux/amd64/v3"], None),
        ("linux/amd64", ["linux/386"], None),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", [], None),
    ],
)
def test_what_fits_best_is_chosen(wanted: str, offered: list[str], chosen: int | None) -> None:
    """
    The same, else a lesser variant; never another architecture.
    """
    assert choose(Platform.parse(wanted), [Platform.parse(text) for text in offered]) == chosen


def test_this_machine_has_a_platform() -> None:
    """
    Tests run on Linux.
    """
    assert Platform.of_machine().os == "linux"
    assert choose(Platform.of_machine(), [Platform.of_machine()]) == 0


@pytest.mark.parametrize("found", [None, [], {}, {"os": "linux"}, {"architecture": "arm"}])
def test_what_does_not_say_has_none(found: object) -> None:
    """
    Old images and hand-made ones.
    """
    assert Platform.from_json(found) is None

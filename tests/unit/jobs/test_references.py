from __future__ import annotations

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import BadName
from gear_plugin.jobs.references import Reference, same_image
from gear_plugin.names import ImageId

HEX = Digest.of(b"x")


@pytest.mark.parametrize(
    ("text", "host", "repository", "version"),
    [
        ("nginx", "docker.io", "library/nginx", "latest"),
        ("nginx:1.25", "docker.io", "library/nginx", "1.25"),
        ("team/app:1", "docker.io", "team/app", "1"),
        ("docker.io/nginx", "docker.io", "library/nginx", "latest"),
        ("index.docker.io/team/app", "docker.io", "team/app", "latest"),
        ("localhost/app", "localhost", "app", "latest"),
        ("localhost:5000/app:1", "localhost:5000", "app", "1"),
        ("registry.example/a/b/c:1", "registry.example", "a/b/c", "1"),
        ("[::1]:5000/app", "[::1]:5000", "app", "latest"),
        (f"registry.example/app@{HEX}", "registry.example", "app", str(HEX)),
        (f"nginx:1.25@{HEX}", "docker.io", "library/nginx", str(HEX)),
    ],
)
def test_names_are_read_as_docker_reads_them(
    text: str, host: str, repository: str, version: str
) -> None:
    """
    Which part is the registry, and what is left out.
    """
    found = Reference.parse(text)
    assert (found.host, found.repository, found.version) == (host, repository, version)
    assert found.digest == (HEX if "@" in text else None)
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize("text", ["", "A", "a@", "a@sha256:1", "a@md5:1", f"@{HEX}", "http://a/b"])
def test_what_is_no_reference_is_a_bad_name(text: str) -> None:
    """
    One line.
    """
    with pytest.raises(BadName):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("docker.io/library/nginx:1", "nginx:1", True),
        ("nginx:latest", "docker.io/nginx", True),
        ("nginx:1", "nginx:2", False),
        ("localhost/nginx:1", "nginx:1", False),
        ("no name at all", "nginx:1", False),
    ],
)
def test_two_names_of_one_image(one: str, other: str, same: bool) -> None:
    """
    As archives and users write them.
    """
    assert same_image(one, ImageId.parse(other)) is same
    assert same_image(one, None) is False

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.errors import BadConfig
from gear_plugin.jobs.logins import Login, Logins

ME = base64.b64encode(b"me:se:cret").decode()


def logins(folder: Path, config: Any) -> Logins:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return Logins(folder / "config.json", helper_timeout_s=1)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a credential helper with this shell script on the PATH."""

    def make(name: str, script: str) -> None:
        path = tmp_path / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\nread -r host || true\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return make


@pytest.mark.parametrize(
    ("auths", "host", "login"),
    [
        ({"reg.example": {"auth": ME}}, "reg.example", Login("me", "se:cret")),
        ({"https://reg.example/v1/": {"auth": ME}}, "reg.example", Login("me", "se:cret")),
        ({"http://reg.example:5000": {"auth": ME}}, "reg.example:5000", Login("me", "se:cret")),
        ({"reg.example": {"auth": ME}}, "reg.example:5000", None),
        ({"https://index.docker.io/v1/": {"auth": ME}}, "docker.io", Login("me", "se:cret")),
        ({"reg.example": {"username": "a", "password": "b"}}, "reg.example", Login("a", "b")),
        ({"reg.example": {"identitytoken": "t"}}, "reg.example", Login("", "t")),
        ({"reg.example": {}}, "reg.example", None),
        ({}, "reg.example", None),
        ([], "reg.example", None),
    ],
)
def test_logins_of_the_file(tmp_path: Path, auths: Any, host: str, login: Login | None) -> None:
    """
    As any docker of the last ten years has written them.
    """
    assert logins(tmp_path, {"auths": auths}).of(host) == login


def test_no_file_is_no_login(tmp_path: Path) -> None:
    """
    Most machines that build have none.
    """
    assert Logins(tmp_path / "none").of("reg.example") is None


def test_a_password_does_not_show() -> None:
    """
    Not in a traceback, not in a log.
    """
    assert "secret" not in repr(Login("me", "secret"))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "no JSON object"),
        ({"auths": {"reg.example": {"auth": "%%%"}}}, "damaged login for reg.example; run"),
        ({"auths": {"reg.example": {"auth": "/////w=="}}}, "damaged login"),
        ({"credsStore": "../x"}, "impossible helper"),
        ({"credsStore": "missing"}, "wants docker-credential-missing, which is not on the PATH"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, config: Any, words: str) -> None:
    """
    In one line that says what to do.
    """
    with pytest.raises(BadConfig, match=words) as raised:
        logins(tmp_path, config).of("reg.example")
    assert "\n" not in str(raised.value)


def test_helpers_are_asked_in_docker_s_order(tmp_path: Path, helper: Any) -> None:
    """
    The registry's own, else the one for all; `auths` only where there is no helper.
    """
    answer = """echo '{"Username": "%s", "Secret": "for '$host'"}'"""
    helper("own", answer % "own")
    helper("all", answer % "all")
    found = logins(
        tmp_path,
        {
            "auths": {"reg.example": {"auth": ME}, "other.example": {}},
            "credHelpers": {"reg.example": "own"},
            "credsStore": "all",
        },
    )
    assert found.of("reg.example") == Login("own", "for reg.example")
    assert found.of("other.example") == Login("all", "for other.example")
    assert found.of("docker.io") == Login("all", "for https://index.docker.io/v1/")


def test_a_helper_may_have_a_token_or_nothing(tmp_path: Path, helper: Any) -> None:
    """
    A name of `<token>` means that the secret is one.
    """
    helper("token", """echo '{"Username": "<token>", "Secret": "t"}'""")
    helper("none", "echo credentials not found in native keychain; exit 1")
    assert logins(tmp_path, {"credsStore": "token"}).of("reg.example") == Login("", "t")
    assert logins(tmp_path, {"credsStore": "none"}).of("reg.example") is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo the key ring is locked >&2; exit 1", "gave no login for .*: the key ring is locked"),
        ("exit 3", "no reason"),
        ("echo nonsense", "gave what is no login"),
        ("echo '{}'", "gave what is no login"),
        ("exec sleep 30", "within 1 s"),
    ],
)
def test_a_helper_that_fails_is_named(tmp_path: Path, helper: Any, script: str, words: str) -> None:
    """
    And never waited for without an end.
    """
    helper("bad", script)
    begun = time.monotonic()
    with pytest.raises(BadConfig, match=f"docker-credential-bad .*{words}") as raised:
        logins(tmp_path, {"credsStore": "bad"}).of("reg.example")
    assert "\n" not in str(raised.value)
    assert time.monotonic() - begun < 20

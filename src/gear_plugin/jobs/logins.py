"""
Logins to registries, as docker has them: `config.json` and credential helpers.

Order (docker/cli cli/config/configfile/file.go, GetAuthConfig): a helper of
`credHelpers` for this registry, else that of `credsStore`, else `auths`.
Looked up anew each time, as `docker login` may run in between.  Helpers speak
docker-credential-helpers' protocol: `get` with the registry on stdin, JSON on
stdout.  Safe from any thread.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gear_plugin.errors import BadConfig
from gear_plugin.jobs.references import HUB

_HUB_KEY = "https://index.docker.io/v1/"
"""What docker calls Docker Hub when it keeps a login."""
_HELPER_TIMEOUT_S = 120.0
"""A helper may ask a person to unlock a key ring."""
_TOKEN_USER = "<token>"  # noqa: S105 - what helpers say instead of a name
_NOT_FOUND = "credentials not found in native keychain"


@dataclass(frozen=True, slots=True)
class Login:
    """A name with a password, or (`user` empty) an identity token."""

    user: str
    secret: str

    def __repr__(self) -> str:
        return f"Login({self.user!r}, ...)"


class Logins:
    """The logins of one docker `config.json`, which need not exist."""

    def __init__(self, file: Path, *, helper_timeout_s: float = _HELPER_TIMEOUT_S) -> None:
        self._file = file
        self._helper_timeout_s = helper_timeout_s

    def of(self, host: str) -> Login | None:
        """
        The login to the registry *host*; None: there is none.

        Raises BadConfig: the file is damaged, or a helper fails.
        """
        config = self._read()
        key = _HUB_KEY if host == HUB else host
        helpers = config.get("credHelpers")
        helper = helpers.get(key) if isinstance(helpers, dict) else None
        helper = helper or config.get("credsStore")
        if helper:
            return self._ask(str(helper), key)
        auths = config.get("auths")
        for name, entry in auths.items() if isinstance(auths, dict) else ():
            if isinstance(entry, dict) and (name == key or _host(str(name)) == _host(key)):
                return self._decode(host, entry)
        return None

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_bytes())
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise BadConfig(f"docker's {self._file} cannot be read: {error}") from error
        return found

    def _decode(self, host: str, entry: dict[str, Any]) -> Login | None:
        """An entry of `auths`."""
        if entry.get("identitytoken"):
            return Login("", str(entry["identitytoken"]))
        user, secret = str(entry.get("username") or ""), str(entry.get("password") or "")
        if entry.get("auth"):
            try:
                text = base64.b64decode(str(entry["auth"]), validate=True).decode()
            except (binascii.Error, UnicodeDecodeError) as error:
                raise BadConfig(
                    f"docker's {self._file} has a damaged login for {host}; "
                    f"run `docker login {host}`"
                ) from error
            user, _, secret = text.partition(":")
            secret = secret.rstrip("\0")
        return Login(user, secret) if user else None

    def _ask(self, helper: str, key: str) -> Login | None:
        """Run the credential helper."""
        program = f"docker-credential-{helper}"
        if not re.fullmatch(r"[\w.-]+", helper):
            raise BadConfig(f"docker's {self._file} names an impossible helper: {helper[:100]!r}")
        try:
            done = subprocess.run(
                [program, "get"],
                input=key,
                capture_output=True,
                text=True,
                timeout=self._helper_timeout_s,
                check=False,
            )
        except FileNotFoundError as error:
            raise BadConfig(
                f"docker's {self._file} wants {program}, which is not on the PATH"
            ) from error
        except (OSError, ValueError) as error:
            raise BadConfig(f"{program} cannot be run: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise BadConfig(
                f"{program} gave no login for {key} within {self._helper_timeout_s:.0f} s"
            ) from error
        if done.returncode:
            said = " ".join((done.stdout + " " + done.stderr).split())
            if _NOT_FOUND in said:
                return None
            raise BadConfig(f"{program} gave no login for {key}: {said[:300] or 'no reason'}")
        try:
            found = json.loads(done.stdout)
            user, secret = str(found["Username"]), str(found["Secret"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadConfig(f"{program} gave what is no login for {key}") from error
        return Login("" if user == _TOKEN_USER else user, secret)


def _host(key: str) -> str:
    """`https://host/v1/`, as older logins are kept, is `host`."""
    return re.sub(r"^https?://", "", key).partition("/")[0]

"""
What a registry's 401 asks for, and the header that answers it.

Sources: distribution docs/spec/auth (token.md, oauth.md); RFC 7617 for Basic.
Pure but for the one request to a token server, which the caller carries out.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from gear_plugin.errors import AccessDenied, SourceUnavailable
from gear_plugin.jobs.logins import Login

_PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"', re.IGNORECASE)
_CLIENT = "gear"


@dataclass(frozen=True, slots=True)
class Challenge:
    """A WWW-Authenticate header: `basic`, or `bearer` with where tokens come from."""

    scheme: str
    realm: str
    service: str

    @classmethod
    def parse(cls, header: str) -> Challenge | None:
        """The best of what *header* offers; None: nothing that Gear knows."""
        for scheme in ("bearer", "basic"):
            found = re.search(rf"(?:^|,\s*){scheme}\s+(.*)", header, re.IGNORECASE)
            if found:
                values = {key.lower(): value for key, value in _PARAMETER.findall(found[1])}
                return cls(scheme, values.get("realm", ""), values.get("service", ""))
        return None


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request to a token server; *form* makes it a POST."""

    url: str
    headers: dict[str, str]
    form: bytes | None


def answer(
    challenge: Challenge | None,
    host: str,
    scope: str,
    login: Login | None,
    ask: Callable[[TokenRequest], tuple[int, bytes]],
) -> str:
    """
    The Authorization header for *scope* at *host*.

    *ask* sends a request to the token server and returns its status and body.
    Raises AccessDenied (a login is missing, or wrong), SourceUnavailable.
    """
    if challenge is None:
        raise SourceUnavailable(f"the registry {host} wants a login of a kind Gear does not know")
    if challenge.scheme == "basic":
        if login is None or not login.user:
            raise AccessDenied(f"the registry {host} wants a login; run `docker login {host}`")
        return basic(login)
    status, body = ask(_token_request(challenge, scope, login))
    if status in (400, 401, 403):
        with_login = f"this login ({login.user or 'a token'})" if login else "anybody without login"
        raise AccessDenied(
            f"the registry {host} refuses {with_login} for {scope}; run `docker login {host}`"
        )
    try:
        found = json.loads(body) if status == 200 else {}
        token = str(found.get("token") or found.get("access_token") or "")
    except (ValueError, AttributeError):
        token = ""
    if not token:
        raise SourceUnavailable(f"the token server of {host} gave no token (status {status})")
    return f"Bearer {token}"


def basic(login: Login) -> str:
    """An Authorization header with name and password."""
    pair = f"{login.user}:{login.secret}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _token_request(challenge: Challenge, scope: str, login: Login | None) -> TokenRequest:
    values = {"service": challenge.service, "scope": scope}
    if login is not None and not login.user:
        values |= {
            "grant_type": "refresh_token",
            "refresh_token": login.secret,
            "client_id": _CLIENT,
        }
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return TokenRequest(challenge.realm, kind, urlencode(values).encode())
    headers = {}
    if login is not None:
        headers["Authorization"] = basic(login)
        values["account"] = login.user
    joint = "&" if urlsplit(challenge.realm).query else "?"
    return TokenRequest(challenge.realm + joint + urlencode(values), headers, None)

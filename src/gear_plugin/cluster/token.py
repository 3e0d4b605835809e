"""
The cluster's token: `<cluster id, 16 hex digits>.<secret, 64 hex digits>`.

The id is no secret: it is in answers and logs, so that a token of another
cluster can be told from a wrong one.
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass, field

from gear_plugin.errors import AccessDenied, BadConfig

_TOKEN = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{64})\Z")
_SCHEME = "Bearer "


@dataclass(frozen=True, slots=True)
class Token:
    """A cluster's id and secret; the secret is not in its repr."""

    cluster: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> Token:
        """A token that nobody has."""
        return cls(secrets.token_hex(8), secrets.token_hex(32))

    @classmethod
    def parse(cls, text: str) -> Token:
        """Parse what `gear token` prints; raises BadConfig, which does not repeat the text."""
        found = _TOKEN.match(text.strip())
        if not found:
            raise BadConfig(
                "that is no cluster token (16 hex digits, a dot, 64 hex digits);"
                " `gear token` on a manager's machine prints the right one"
            )
        return cls(found[1], found[2])

    def text(self) -> str:
        """What `parse` takes."""
        return f"{self.cluster}.{self.secret}"

    def header(self) -> str:
        """The value of the `Authorization` header that lets a request in."""
        return _SCHEME + self.text()

    def admit(self, header: str) -> None:
        """
        Let a request with this `Authorization` header in, or raise AccessDenied.

        How long a refusal takes says nothing about the secret.
        """
        given = header.removeprefix(_SCHEME)
        if hmac.compare_digest(given.encode(), self.text().encode()) and header != given:
            return
        if not header:
            raise AccessDenied("the cluster's token is missing (Authorization: Bearer TOKEN)")
        found = _TOKEN.match(given)
        if found and found[1] != self.cluster:
            raise AccessDenied(
                f"that is the token of cluster {found[1]}, and this is cluster {self.cluster}"
            )
        raise AccessDenied("that is not the cluster's token; `gear token` prints it")

"""
Where an etcd cluster is, from the setting `catalog`.

    etcd://[USER@]HOST[:PORT][,HOST[:PORT]...][/PREFIX][?password_file=FILE]
    etcds://... with TLS, and ?ca=FILE&cert=FILE&key=FILE as well

A password is read from a file and never stands in the URL: settings show up
in `docker info`, in process lists and in error messages.  Pure value; opens
no file.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from gear_plugin.errors import BadConfig

FORM = "etcd://HOST[:PORT][,HOST[:PORT]...][/PREFIX]"
DEFAULT_PORT = 2379
DEFAULT_PREFIX = "/gear"

_URL = re.compile(
    r"(?P<scheme>etcds?)://(?:(?P<user>[^@/?]*)@)?(?P<hosts>[^/?@]+)"
    r"(?P<prefix>/[^?]*)?(?:\?(?P<options>.*))?\Z"
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?::(\d+))?\Z")
_OPTIONS = ("ca", "cert", "key", "password_file")
# Of the system; etcd3 asks for a file, and knows none itself.
_SYSTEM_CA = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True, slots=True)
class EtcdAddress:
    """One cluster, and the place in it that is Gear's."""

    endpoints: tuple[tuple[str, int], ...]
    """Host (IPv6 in brackets) and port of each member, at least one."""
    prefix: str
    """Every key begins with it and `/`; it begins with `/` itself."""
    user: str | None = None
    password_file: Path | None = None
    ca: Path | None = None
    """Of who signed the members' certificates; None: no TLS."""
    cert: Path | None = None
    key: Path | None = None

    @classmethod
    def parse(cls, url: str) -> EtcdAddress:
        """Parse the setting; raises BadConfig, whose message never shows a password."""
        found = _URL.match(url)
        user = found["user"] if found else None
        if found is None or user == "":
            raise BadConfig(f"setting 'catalog': not {FORM}")
        if user and ":" in user:
            raise BadConfig(
                "setting 'catalog': a password does not belong into the URL; "
                "write it to a file and add ?password_file=FILE"
            )
        return cls(
            endpoints=tuple(_endpoint(host) for host in found["hosts"].split(",")),
            prefix=_prefix(found["prefix"] or ""),
            user=user,
            **_files(found["options"] or "", tls=found["scheme"] == "etcds", user=user),
        )

    def __str__(self) -> str:
        """For messages: the members, such as `10.0.0.1:2379, 10.0.0.2:2379`."""
        return ", ".join(f"{host}:{port}" for host, port in self.endpoints)


def _endpoint(text: str) -> tuple[str, int]:
    found = _HOST.match(text)
    port = int(found[2] or DEFAULT_PORT) if found else 0
    if found is None or not 0 < port < 2**16:
        raise BadConfig(f"setting 'catalog': not HOST[:PORT]: {text!r}")
    return found[1], port


def _prefix(text: str) -> str:
    words = [word for word in text.split("/") if word]
    return "/" + "/".join(words) if words else DEFAULT_PREFIX


def _files(text: str, *, tls: bool, user: str | None) -> dict[str, Path | None]:
    pairs = parse_qsl(text, keep_blank_values=True)
    options = dict(pairs)
    for name, value in pairs:
        if name not in _OPTIONS or not value:
            raise BadConfig(
                f"setting 'catalog': unknown or empty option {name!r}; known: {', '.join(_OPTIONS)}"
            )
    if not tls and not options.keys().isdisjoint(("ca", "cert", "key")):
        raise BadConfig("setting 'catalog': ca, cert and key need TLS; write etcds://")
    if ("cert" in options) != ("key" in options):
        raise BadConfig("setting 'catalog': cert and key go together")
    if (user is None) != ("password_file" not in options):
        raise BadConfig("setting 'catalog': a user and ?password_file=FILE go together")
    if tls:
        options.setdefault("ca", _SYSTEM_CA)
    return {name: Path(value) for name, value in options.items()}

"""
Where a store on an NFS server is, from the setting `store`.

    nfs://HOST[:PORT]/EXPORT

EXPORT is the path as the server exports it; in it `%20` stands for a blank
(RFC 2224).  Pure value; asks no name server and mounts nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path
from urllib.parse import unquote

from gear_plugin.errors import BadConfig

FORM = "nfs://HOST[:PORT]/EXPORT"
DEFAULT_PORT = 2049
FOLDER = "nfs"
"""Of a node's main folder: where its store is mounted."""

_SCHEME = "nfs://"
_URL = re.compile(r"(?P<host>\[[^\]/]*\]|[^:/\[\]]+)(?::(?P<port>\d{1,5}))?(?P<export>/.*)\Z")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")
_MAX_EXPORT = 1024
"""NFS4_MAXPATHLEN is 1024 in the kernel's client."""


@dataclass(frozen=True, slots=True)
class NfsAddress:
    """One exported directory."""

    host: str
    """A name, an IPv4 or an IPv6 address, without brackets."""
    port: int
    export: str
    """Absolute, without a slash at its end."""

    @classmethod
    def parse(cls, text: str) -> NfsAddress:
        """Parse the setting; raises BadConfig."""
        found = _URL.match(text.removeprefix(_SCHEME))
        if not text.startswith(_SCHEME) or found is None:
            raise BadConfig(f"setting 'store': {text!r} is not {FORM}")
        return cls(
            _host(found["host"], text),
            _port(found["port"], text),
            _export(found["export"], text),
        )

    @property
    def source(self) -> str:
        """`HOST:/EXPORT`, as mount(8) and the kernel's list of mounts write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.export}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"{_SCHEME}{host}{port}{self.export}"


def is_nfs(store: str) -> bool:
    """Whether the setting *store* names an NFS server, well-formed or not."""
    return store.startswith(_SCHEME)


def store_folder(store: str, root: Path) -> Path:
    """
    Where the objects of the store that the setting names are read: its
    folder, or the mount point below the main folder *root*.
    """
    return root / FOLDER if is_nfs(store) else Path(store)


def _host(text: str, whole: str) -> str:
    if text.startswith("["):
        try:
            address = IPv6Address(text[1:-1])
        except AddressValueError as error:
            raise BadConfig(f"setting 'store': {whole!r}: {text} is no IPv6 address") from error
        if address.scope_id is None:
            return str(address)
    if not _NAME.match(text):
        raise BadConfig(f"setting 'store': {whole!r}: {text!r} is no host; write {FORM}")
    return text


def _port(text: str | None, whole: str) -> int:
    port = DEFAULT_PORT if text is None else int(text)
    if not 0 < port < 2**16:
        raise BadConfig(f"setting 'store': {whole!r}: a port is 1 to 65535")
    return port


def _export(text: str, whole: str) -> str:
    try:
        path = unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise BadConfig(f"setting 'store': {whole!r}: the export is not UTF-8") from error
    parts = [part for part in path.split("/") if part]
    # `?` and `#` begin other parts of a URL; written as %3F and %23 they are names.
    is_clean = path.isprintable() and not {"?", "#"} & set(text) and not {".", ".."} & set(parts)
    if not is_clean or len(path.encode()) > _MAX_EXPORT:
        raise BadConfig(
            f"setting 'store': {whole!r}: the export is a plain absolute path of at most"
            f" {_MAX_EXPORT} bytes; write {FORM}"
        )
    return "/" + "/".join(parts)

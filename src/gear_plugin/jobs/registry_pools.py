"""
Connections to registries: which certificates are trusted, and through which proxy.

Certificates are trusted as docker trusts them: the system's authorities (or
SSL_CERT_FILE, which OpenSSL reads), and `certs.d/<host>/*.crt`; a client
certificate there (`*.cert`, `*.key`) is used.  A registry on loopback, or one
that is listed as insecure, may have any certificate, or none: plain http
(moby registry/config.go, v20.10.24).  Safe from any thread.
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import urllib3
from urllib3.util import make_headers

from gear_plugin.errors import BadConfig
from gear_plugin.jobs.logins import Logins

_CONNECTIONS = 8
"""Kept for each registry; more threads than that never pull at once."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long is waited, in seconds, and how often something is tried."""

    connect_s: float = 10.0
    stall_s: float = 30.0
    """Between two bytes."""
    slow_s: float = 60.0
    slow_bytes: int = 64 << 10
    """A blob of which fewer bytes than this come in `slow_s` is given up."""
    attempts: int = 4
    """In a row without one byte more."""
    pause_s: float = 0.5
    """Before the second attempt; twice as long before each further one."""


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """
    What reaching registries depends on.

    `certs`: docker's certs.d folder, which need not exist.  `insecure`: hosts
    (`host`, `host:port`) and networks (CIDR) beside loopback.  `proxies`: as
    urllib's getproxies_environment gives them.
    """

    logins: Logins
    certs: Path
    insecure: Collection[str] = ()
    proxies: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


class Pools:
    """One pool of connections a server."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._pools: dict[str, urllib3.PoolManager] = {}

    def of(self, url: str) -> urllib3.PoolManager:
        """For requests to *url*; raises BadConfig (certificates or proxy cannot be used)."""
        parts = urlsplit(url)
        key = f"{parts.scheme}://{parts.netloc}"
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = self._new(parts.scheme, parts.netloc)
        return pool

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()

    def is_insecure(self, server: str) -> bool:
        """Whether *server* (`host`, `host:port`) may do without a proper certificate."""
        listed = self._settings.insecure
        name = urlsplit(f"//{server}").hostname or ""
        if name == "localhost" or server in listed or name in listed:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or any(address in network for network in _networks(listed))

    def _new(self, scheme: str, server: str) -> urllib3.PoolManager:
        context = None
        if scheme == "https":
            context = _trust(self._settings.certs / server, verify=not self.is_insecure(server))
        proxies = dict(self._settings.proxies)
        proxy = proxies.get(scheme)
        if proxy is None or proxy_bypass_environment(server, proxies):
            return urllib3.PoolManager(maxsize=_CONNECTIONS, ssl_context=context)
        login = urlsplit(proxy)
        headers = None
        if login.username:
            headers = make_headers(proxy_basic_auth=f"{login.username}:{login.password or ''}")
        try:
            return urllib3.ProxyManager(
                proxy, maxsize=_CONNECTIONS, ssl_context=context, proxy_headers=headers
            )
        except (ValueError, urllib3.exceptions.HTTPError) as error:
            raise BadConfig(f"the proxy for {scheme} cannot be used: {error}") from error


def _networks(
    listed: Collection[str],
) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    try:
        return [ipaddress.ip_network(text) for text in listed if "/" in text]
    except ValueError as error:
        raise BadConfig(f"an insecure registry that is no network: {error}") from error


def _trust(folder: Path, *, verify: bool) -> ssl.SSLContext:
    """The authorities of the system and of *folder*, and the client's certificate in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if verify:
        context.load_default_certs()
    else:
        # Whoever listed it as insecure knows; docker does not say so each time either.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        for authority in sorted(folder.glob("*.crt")):
            context.load_verify_locations(authority)
        for certificate in sorted(folder.glob("*.cert")):
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    except OSError as error:  # ssl.SSLError is one
        raise BadConfig(f"the certificates in {folder} cannot be used: {error}") from error
    return context

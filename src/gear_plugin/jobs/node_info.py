"""
Asking a node who it is: `GET /info` of its port.

Safe from any thread.
"""

from __future__ import annotations

import contextlib
import json
import ssl

import urllib3

from gear_plugin.cluster import Member, Token
from gear_plugin.errors import Conflict, SourceUnavailable

_MAX_BYTES = 1 << 16
_MAX_CONNECTIONS = 512
"""Kept open between checks, of 1,024 files that a process may open by default."""


class NodeInfo:
    """
    Asks nodes of the cluster of *token*, each step of an answer within *timeout_s*.

    *tls*: how nodes are spoken to; None: without TLS.
    """

    def __init__(self, token: Token, *, timeout_s: float, tls: ssl.SSLContext | None) -> None:
        self._token = token
        self._scheme = "https" if tls else "http"
        self._pools = urllib3.PoolManager(
            num_pools=_MAX_CONNECTIONS,
            maxsize=1,
            retries=False,
            timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s),
            ssl_context=tls,
        )

    def ask(self, member: Member) -> None:
        """
        Return when *member* answers as itself.

        Raises SourceUnavailable (no answer, or none that makes sense), Conflict
        (somebody else answers there).
        """
        found = self._get(member)
        if found.get("node") != member.node or found.get("cluster") != self._token.cluster:
            raise Conflict(
                f"at {member.address} answers node {found.get('node')!r:.50} "
                f"of cluster {found.get('cluster')!r:.50}"
            )

    def close(self) -> None:
        """Close the connections."""
        self._pools.clear()

    def _get(self, member: Member) -> dict[str, object]:
        url = f"{self._scheme}://{member.address}/info"
        headers = {"Authorization": self._token.header()}
        try:
            answer = self._pools.request(
                "GET", url, headers=headers, preload_content=False, redirect=False
            )
            with contextlib.closing(answer):
                data = answer.read(_MAX_BYTES + 1)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise SourceUnavailable(f"{url}: {error}") from error
        if answer.status != 200 or len(data) > _MAX_BYTES:
            raise SourceUnavailable(f"{url}: status {answer.status}: {data[:200]!r}")
        try:
            found = json.loads(data)
        except ValueError as error:
            raise SourceUnavailable(f"{url}: not JSON: {data[:60]!r}") from error
        if not isinstance(found, dict):
            raise SourceUnavailable(f"{url}: not a JSON object: {data[:60]!r}")
        return found

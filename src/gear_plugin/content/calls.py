"""
HTTP calls to the cluster's other machines: the manager's :2019 and the nodes' :2020.

Connections are kept, a pool for each machine.  Nothing that comes back is
trusted: no redirect is followed, bodies that are not objects are bounded, and
texts are cut to one line.  Every wait has a limit.  Safe from any thread.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse

from gear_plugin import wire
from gear_plugin.cluster import Token
from gear_plugin.content.rate import RateLimit
from gear_plugin.errors import (
    AccessDenied,
    BadRequest,
    GearError,
    NotFound,
    SourceUnavailable,
)

PIECE_BYTES = 64 << 10
"""This much must come in each `stall_s`: with 8 s, 8 KiB a second."""

_MACHINES = 256
_CONNECTIONS = 16
"""Kept for each machine; more may be open at a time."""
_MAX_ERROR_BYTES = 64 << 10
_MAX_JSON_BYTES = 32 << 20
"""The list of 100,000 nodes has about 10 MB."""
_MAX_LINE = 300


class Calls:
    """
    Calls with the cluster's *token*.

    *connect_s* limits connecting, *stall_s* each wait for bytes.
    """

    def __init__(
        self,
        token: Token,
        *,
        tls: ssl.SSLContext | None = None,
        connect_s: float = 3.0,
        stall_s: float = 8.0,
    ) -> None:
        self._scheme = "http" if tls is None else "https"
        self._pools = urllib3.PoolManager(_MACHINES, maxsize=_CONNECTIONS, ssl_context=tls)
        self._headers = {
            "Authorization": token.header(),
            "Accept-Encoding": "identity",
            "User-Agent": "gear",
        }
        self._connect_s = connect_s
        self.stall_s = stall_s

    def post(
        self,
        address: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = None,
    ) -> BaseHTTPResponse:
        """
        The answer to a POST, whatever its status, its body not yet read.

        *answer_s*: how long it may take to begin; None: `stall_s`.
        Raises SourceUnavailable: *address* did not answer.
        """
        return self._request("POST", address, path, body, headers or {}, answer_s or self.stall_s)

    def ask(
        self,
        method: str,
        address: str,
        path: str,
        message: Mapping[str, Any] | None = None,
        *,
        answer_s: float | None = None,
    ) -> dict[str, Any]:
        """
        The JSON object that a call answers.

        Raises SourceUnavailable, and whatever GearError *address* answers.
        """
        body = b"" if message is None else json.dumps(message).encode()
        headers = {"Content-Type": "application/json"} if body else {}
        response = self._request(method, address, path, body, headers, answer_s or self.stall_s)
        error = failure(response, address)
        if error is not None:
            raise error
        data = _bounded(response, _MAX_JSON_BYTES)
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise SourceUnavailable(f"{address} answers {path} with something that is no JSON")
        return answer

    def close(self) -> None:
        """Close the connections that are kept."""
        self._pools.clear()

    def _request(
        self,
        method: str,
        address: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        answer_s: float,
    ) -> BaseHTTPResponse:
        def once() -> BaseHTTPResponse:
            return self._pools.request(
                method,
                f"{self._scheme}://{address}{path}",
                body=body,
                headers={**self._headers, **headers},
                timeout=urllib3.Timeout(connect=self._connect_s, read=answer_s),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )

        try:
            try:
                return once()
            except ProtocolError:
                # A kept connection that the other side closed in that moment.
                return once()
        except ReadTimeoutError as error:
            raise SourceUnavailable(
                f"{address} did not answer {path[:80]} in {answer_s:g} s"
            ) from error
        except (HTTPError, OSError) as error:
            raise SourceUnavailable(f"{address} cannot be asked: {_why(error)}") from error


class Body:
    """
    What *response* of *address* holds, as it comes; each read waits at most *stall_s*.

    Bytes pass *limit* before they are handed out.  One thread.
    """

    def __init__(
        self, response: BaseHTTPResponse, address: str, stall_s: float, limit: RateLimit
    ) -> None:
        self._response = response
        self._address = address
        self._stall_s = stall_s
        self._limit = limit
        self._rest = b""

    def some(self, most: int = PIECE_BYTES) -> bytes:
        """
        The next *most* bytes, fewer at the end, then none.

        Raises SourceUnavailable: it broke off, or sends too slowly.
        """
        parts = []
        deadline_s = time.monotonic() + self._stall_s
        while most:
            data, self._rest = self._rest[:most], self._rest[most:]
            if not data:
                data = self._next()
                if not data:
                    break
                data, self._rest = data[:most], data[most:]
            parts.append(data)
            most -= len(data)
            if most and time.monotonic() > deadline_s:
                raise SourceUnavailable(
                    f"{self._address} sends less than {PIECE_BYTES >> 10} KiB"
                    f" in {self._stall_s:g} s"
                )
        return b"".join(parts)

    def soon(self) -> bytes:
        """What comes first, however little; nothing at the end."""
        return self._next()

    def exactly(self, size_bytes: int) -> bytes:
        """The next *size_bytes*; raises SourceUnavailable also when they are not there."""
        data = self.some(size_bytes)
        if len(data) < size_bytes:
            raise SourceUnavailable(f"{self._address} broke off")
        return data

    def pieces(self, left_bytes: int | None = None) -> Iterator[bytes]:
        """All that is left, or the next *left_bytes*, in pieces."""
        while left_bytes is None or left_bytes > 0:
            if left_bytes is None:
                data = self.some()
                if not data:
                    return
            else:
                data = self.exactly(min(left_bytes, PIECE_BYTES))
                left_bytes -= len(data)
            yield data

    def close(self) -> None:
        """Give the connection back if all was read, else close it."""
        release(self._response)

    def _next(self) -> bytes:
        try:
            data: bytes = self._response.read1(PIECE_BYTES, decode_content=False)
        except ReadTimeoutError as error:
            raise SourceUnavailable(
                f"{self._address} sent nothing for {self._stall_s:g} s"
            ) from error
        except (HTTPError, OSError) as error:
            raise SourceUnavailable(f"{self._address} broke off: {_why(error)}") from error
        self._limit.take(len(data))
        return data


def failure(response: BaseHTTPResponse, address: str) -> GearError | None:
    """What *response* of *address* says went wrong; None: nothing did, and nothing was read."""
    if response.status == 200:
        return None
    try:
        found = json.loads(_bounded(response, _MAX_ERROR_BYTES))
    except (ValueError, GearError):
        found = None
    if isinstance(found, dict) and isinstance(found.get("error"), str):
        message = f"{address}: {one_line(str(found.get('message', 'no reason given')))}"
        try:
            wire.raise_failure({"ok": False, "error": found["error"], "message": message})
        except GearError as error:
            return error
    return _by_status(response.status)(f"{address} answers with HTTP status {response.status}")


def release(response: BaseHTTPResponse) -> None:
    """Keep the connection if *response* was read to its end; else close it."""
    if response.length_remaining == 0 or response.closed:
        response.drain_conn()  # reads nothing, and lets http.client see the end
    else:
        response.close()
    response.release_conn()


def one_line(text: str) -> str:
    """A stranger's text, fit for a log."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:_MAX_LINE]).split())


def _by_status(status: int) -> type[GearError]:
    if status in (401, 403):
        return AccessDenied
    if status == 404:
        return NotFound
    return BadRequest if 400 <= status < 500 else GearError


def _bounded(response: BaseHTTPResponse, limit_bytes: int) -> bytes:
    """The whole body; raises SourceUnavailable when it is longer."""
    try:
        data: bytes = response.read(limit_bytes + 1, decode_content=False)
        if len(data) > limit_bytes:
            response.close()
            raise SourceUnavailable(f"an answer of more than {limit_bytes} bytes")
        response.drain_conn()
    except (HTTPError, OSError) as error:
        raise SourceUnavailable(f"an answer broke off: {_why(error)}") from error
    finally:
        response.release_conn()
    return data


def _why(error: Exception) -> str:
    """urllib3 puts the reason last, after the objects that it concerns."""
    if error.args and isinstance(error.args[-1], OSError):
        error = error.args[-1]
    reason = error.strerror if isinstance(error, OSError) else None
    return one_line(reason or str(error).rpartition(": ")[2] or type(error).__name__)

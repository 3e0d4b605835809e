"""
HTTP to registries: logins, retries, time limits, and errors translated once.

Safe from any thread.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import BinaryIO, TypeVar
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.util import Retry, Timeout

from gear_plugin.errors import AccessDenied, BadConfig, GearError, SourceUnavailable, TimedOut
from gear_plugin.jobs.causes import system_error
from gear_plugin.jobs.references import HUB
from gear_plugin.jobs.registry_auth import Challenge, TokenRequest, answer
from gear_plugin.jobs.registry_pools import Pools, RegistrySettings

_HUB_SERVER = "registry-1.docker.io"
_REDIRECTS = 5
_AGAIN = (429, 500, 502, 503, 504)
_LONGEST_PAUSE_S = 20.0
_MESSAGE_BYTES = 64 << 10
"""As much of an error's or a token's body as is read."""

T = TypeVar("T")
Response = urllib3.BaseHTTPResponse
Body = bytes | BinaryIO | None


class Http:
    """Requests to any number of registries; connections and tokens are kept."""

    def __init__(self, settings: RegistrySettings) -> None:
        self.limits = settings.limits
        self._settings = settings
        self._pools = Pools(settings)
        self._lock = threading.Lock()
        self._bases: dict[str, str] = {}
        self._tokens: dict[tuple[str, str], str] = {}
        self._open: set[Response] = set()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make every request under way, and all later ones, fail at once."""
        self._stopped.set()
        with self._lock:
            responses = list(self._open)
        for response in responses:
            try:
                response.shutdown()
            except (ValueError, RuntimeError, OSError):
                continue  # it has come to its end in the meantime

    def close(self) -> None:
        """Close all connections."""
        self._pools.close()

    def request(
        self,
        method: str,
        host: str,
        path: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        repeat: bool = True,
    ) -> Response:
        """
        Send one request to the registry *host*, logged in for *scope* if it wants that.

        *path* may be a whole URL that the registry gave.  With *repeat* it is
        tried again when the network or the registry fails.  The response has
        any status but 401 and 403; give it to `finish` when it is done.

        Raises SourceUnavailable, AccessDenied, BadConfig.
        """
        url = urljoin(self._base(host), path)
        pause_s = self.limits.pause_s
        attempts = self.limits.attempts if repeat else 1
        for left in reversed(range(attempts)):
            try:
                response = self._logged_in(method, host, url, scope, headers or {}, body)
            except SourceUnavailable:
                if not left:
                    raise
            else:
                if response.status not in _AGAIN or not left:
                    return self._allowed(response, host, scope)
                pause_s = max(pause_s, _retry_after_s(response))
                self.finish(response)
            self._pause(pause_s, host)
            pause_s *= 2
        raise AssertionError("the last attempt returns or raises")

    def repeated(self, host: str, action: Callable[[], T]) -> T:
        """*action*, again and again as long as it raises SourceUnavailable."""
        pause_s = self.limits.pause_s
        for left in reversed(range(self.limits.attempts)):
            try:
                return action()
            except SourceUnavailable:
                if not left:
                    raise
            self._pause(pause_s, host)
            pause_s *= 2
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, seconds: float, host: str) -> None:
        self._stopped.wait(min(seconds, _LONGEST_PAUSE_S))
        self._check_going(host)

    def read(self, response: Response, host: str, count: int) -> bytes:
        """The next bytes of the body, at most *count*; none at its end.  Raises as `request`."""
        try:
            data: bytes = response.read1(count, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._translated(error, host) from error
        self._check_going(host)
        return data

    def body(self, response: Response, host: str, limit: int) -> bytes:
        """The whole body, but no more than *limit* bytes of it; finishes the response."""
        parts, count = [], 0
        deadline = time.monotonic() + self.limits.slow_s
        try:
            while count < limit and (part := self.read(response, host, limit - count)):
                parts.append(part)
                count += len(part)
                if time.monotonic() > deadline:
                    raise TimedOut(f"the registry {host} is too slow; try again")
        finally:
            self.finish(response)
        return b"".join(parts)

    def failed(self, response: Response, host: str, doing: str) -> SourceUnavailable:
        """What to raise for a status that nobody expects; finishes the response."""
        said = _message(self.body(response, host, _MESSAGE_BYTES))
        if response.status == 429:
            return SourceUnavailable(
                f"the registry {host} takes no more requests for now{said}; try later, or log in"
            )
        return SourceUnavailable(
            f"the registry {host} failed with status {response.status} {doing}{said}"
        )

    def finish(self, response: Response) -> None:
        """Give the connection back, or close it if there is more to read."""
        with self._lock:
            self._open.discard(response)
        if response.headers.get("Content-Length") == "0":
            response.drain_conn()
        response.close()

    def _check_going(self, host: str) -> None:
        if self._stopped.is_set():
            raise SourceUnavailable(f"stopped talking to the registry {host}")

    def _logged_in(
        self,
        method: str,
        host: str,
        url: str,
        scope: str,
        headers: Mapping[str, str],
        body: Body,
    ) -> Response:
        key = (host, scope)
        # A registry may name other servers, for uploads; they do not get its login.
        is_own = urlsplit(url).netloc == urlsplit(self._base(host)).netloc
        token = self._tokens.get(key) if is_own else None
        response = self._send(method, host, url, headers, body, token)
        if response.status != 401 or not is_own:
            return response
        challenge = Challenge.parse(response.headers.get("WWW-Authenticate", ""))
        self.finish(response)

        def ask(wanted: TokenRequest) -> tuple[int, bytes]:
            self._check_realm(host, wanted.url)
            verb = "GET" if wanted.form is None else "POST"
            given = self._send(verb, host, wanted.url, wanted.headers, wanted.form, None)
            return given.status, self.body(given, host, _MESSAGE_BYTES)

        login = self._settings.logins.of(host)
        token = self._tokens[key] = answer(challenge, host, scope, login, ask)
        return self._send(method, host, url, headers, body, token)

    def _check_realm(self, host: str, url: str) -> None:
        """A login is not sent in the clear because a registry says so."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not self._pools.is_insecure(parts.netloc):
            raise AccessDenied(
                f"the registry {host} wants its login sent in the clear, to {url[:200]!r}"
            )

    def _allowed(self, response: Response, host: str, scope: str) -> Response:
        if response.status not in (401, 403):
            return response
        said = _message(self.body(response, host, _MESSAGE_BYTES))
        raise AccessDenied(
            f"the registry {host} does not allow {scope}{said}; run `docker login {host}`"
        )

    def _send(
        self,
        method: str,
        host: str,
        url: str,
        headers: Mapping[str, str],
        body: Body,
        token: str | None,
    ) -> Response:
        self._check_going(host)
        sent = {"User-Agent": "gear", "Accept-Encoding": "identity", **headers}
        if token is not None:
            sent["Authorization"] = token
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        try:
            response = self._pools.of(url).request(
                method,
                url,
                headers=sent,
                body=body,
                preload_content=False,
                timeout=Timeout(connect=self.limits.connect_s, read=self.limits.stall_s),
                # The login is left behind when that leads to another host (urllib3's default).
                retries=Retry(None, connect=0, read=0, status=0, other=0, redirect=_REDIRECTS),
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._translated(error, host) from error
        with self._lock:
            self._open.add(response)
        return response

    def _translated(self, error: Exception, host: str) -> GearError:
        reason: object = error
        while isinstance(reason, urllib3.exceptions.MaxRetryError) and reason.reason is not None:
            reason = reason.reason
        text = " ".join(str(reason).split())
        certs = self._settings.certs / host
        if isinstance(reason, urllib3.exceptions.SSLError) and "VERIFY_FAILED" in text:
            return BadConfig(
                f"the registry {host} has a certificate that is not trusted here; "
                f"put its authority into {certs}/ca.crt or SSL_CERT_FILE ({text})"
            )
        if isinstance(reason, urllib3.exceptions.SSLError) and "ALERT_CERTIFICATE" in text:
            return BadConfig(
                f"the registry {host} wants a certificate of its clients; "
                f"put it into {certs}/client.cert and client.key ({text})"
            )
        if isinstance(reason, urllib3.exceptions.ReadTimeoutError | TimeoutError):
            return SourceUnavailable(
                f"the registry {host} sent nothing for {self.limits.stall_s:g} s; try again"
            )
        if isinstance(reason, urllib3.exceptions.ProtocolError):
            return SourceUnavailable(f"the connection to the registry {host} broke; try again")
        cause = system_error(error)
        # urllib3 begins with what it was doing: `HTTPConnection(host=..., port=...): ...`.
        why = cause.strerror if cause else text.rpartition("): ")[2]
        return SourceUnavailable(f"no registry answers at {host}: {why}")

    def _base(self, host: str) -> str:
        """`https://...` or `http://...`; an insecure registry is asked once which it is."""
        server = _HUB_SERVER if host == HUB else host
        with self._lock:
            base = self._bases.get(host)
        if base is None:
            base = f"https://{server}"
            if self._pools.is_insecure(server) and not self._speaks_tls(host, base):
                base = f"http://{server}"
            with self._lock:
                self._bases[host] = base
        return base

    def _speaks_tls(self, host: str, base: str) -> bool:
        try:
            self.finish(self._send("GET", host, f"{base}/v2/", {}, None, None))
        except SourceUnavailable:
            return False
        return True


def _message(body: bytes) -> str:
    """What a registry says in an error's body, as ` (...)`; nothing if it says nothing."""
    try:
        first = json.loads(body)["errors"][0]
        said = " ".join(str(first.get("message") or first.get("code")).split())
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    return f" ({said[:300]})"


def _retry_after_s(response: Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0

"""
The border to etcd: calls with a time limit, over the package `etcd3`.

What etcd3 and gRPC raise is translated here, once.  Every request is safe to
send twice (the catalog makes them so), therefore one that fails because a
member is down, slow or has lost its leader is sent again, to the next member,
until *timeout_s* is over.  A connection that was lost comes back by itself.

Safe from any thread.  etcd's own words: etcd.io/docs, "etcd API", and
api/v3rpc/rpctypes/error.go for its errors.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gear_plugin.catalog.etcd_address import EtcdAddress
from gear_plugin.errors import BadConfig, GearError, SourceUnavailable, StorageFull, TimedOut

# etcd3's generated messages are older than protobuf's C code accepts
# (docs/decisions/0001), and gRPC writes what it raises to stderr as well.
os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import etcd3
    import grpc
    from etcd3 import etcdrpc as rpc

__all__ = ["EtcdClient", "rpc"]

_IN_FLIGHT = 8
"""Transactions sent before the first answer is there: etcd commits them with one fsync."""
_PAUSE_S = 0.2
"""Before a member that has just refused is asked again."""

_CHANNEL = {
    "grpc.enable_http_proxy": 0,  # the cluster's own database is not behind a web proxy
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.min_reconnect_backoff_ms": 2000,
    "grpc.max_reconnect_backoff_ms": 1000,
    # A member that vanished without a word is noticed; etcd allows a ping every 5 s.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5000,
}

Method = Callable[[etcd3.Etcd3Client], Callable[..., Any]]


class _Member:
    """One member of the cluster: its channel, and the token of the last login."""

    def __init__(self, client: etcd3.Etcd3Client) -> None:
        self.client = client
        self.login: tuple[tuple[str, str], ...] | None = None


class EtcdClient:
    """
    The cluster at *address*; nothing is connected until the first call.

    *timeout_s*: no call takes longer.  Raises BadConfig when a file that the
    address names cannot be read.
    """

    def __init__(self, address: EtcdAddress, *, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._password = _read(address.password_file) if address.password_file else None
        for file in (address.ca, address.cert, address.key):
            if file is not None:
                _read(file)
        self._members = [
            _Member(
                etcd3.client(
                    host,
                    port,
                    ca_cert=address.ca and str(address.ca),
                    cert_cert=address.cert and str(address.cert),
                    cert_key=address.key and str(address.key),
                    grpc_options=list(_CHANNEL.items()),
                )
            )
            for host, port in address.endpoints
        ]
        self._lock = threading.Lock()
        self._turn = 0

    def close(self) -> None:
        """Close the connections."""
        for member in self._members:
            member.client.close()

    def txn(self, request: rpc.TxnRequest) -> bool:
        """Run one transaction; whether its comparisons held."""
        return bool(self._call(lambda client: client.kvstub.Txn, request).succeeded)

    def txns(self, requests: Iterable[rpc.TxnRequest]) -> Iterator[bool]:
        """
        Run many that do not depend on one another, some at the same time.

        Gives each one's answer as `txn` does, in the order of *requests*.
        """
        flying: deque[tuple[rpc.TxnRequest, Any]] = deque()
        for request in requests:
            if len(flying) == _IN_FLIGHT:
                yield self._landed(*flying.popleft())
            flying.append((request, self._sent(request)))
        while flying:
            yield self._landed(*flying.popleft())

    def get(self, key: bytes, *, revision: int = 0) -> rpc.RangeResponse:
        """The key, if it is there, now or at *revision*."""
        return self._range(rpc.RangeRequest(key=key, revision=revision))

    def page(
        self, prefix: bytes, *, limit: int, after: bytes = b"", revision: int = 0
    ) -> rpc.RangeResponse:
        """The first *limit* keys that begin with *prefix*, in order, from *after* on."""
        end = etcd3.utils.increment_last_byte(prefix)
        key = after + b"\0" if after else prefix
        return self._range(rpc.RangeRequest(key=key, range_end=end, limit=limit, revision=revision))

    def scan(self, prefix: bytes, *, page: int, revision: int = 0) -> Iterator[Any]:
        """
        Every key that begins with *prefix*, with its value, in order, at one revision.

        *page*: how many are asked for at a time; gRPC takes answers of up to 4 MiB.
        """
        found = self.page(prefix, limit=page, revision=revision)
        while True:
            yield from found.kvs
            if not found.more:
                return
            revision = revision or found.header.revision
            found = self.page(prefix, limit=page, after=found.kvs[-1].key, revision=revision)

    def first_contact(self, key: bytes) -> rpc.RangeResponse:
        """As `get`, but each member is asked once only: a wrong address is told at once."""
        request = rpc.RangeRequest(key=key)
        return self._call(lambda client: client.kvstub.Range, request, tries=len(self._members))

    def grant_lease(self, ttl_s: int) -> int:
        """A new lease, whose number no other ever had."""
        request = rpc.LeaseGrantRequest(TTL=ttl_s)
        return int(self._call(lambda client: client.leasestub.LeaseGrant, request).ID)

    def revoke_lease(self, lease: int) -> None:
        """End it now, and the keys that hang on it."""
        request = rpc.LeaseRevokeRequest(ID=lease)
        try:
            self._call(lambda client: client.leasestub.LeaseRevoke, request)
        except SourceUnavailable as error:
            # It has expired, or the answer to a first try was lost.
            reason = error.__cause__
            if not isinstance(reason, grpc.RpcError) or reason.code() != grpc.StatusCode.NOT_FOUND:
                raise

    def keep_lease(self, lease: int) -> None:
        """Let it last its whole time again; nothing happens to one that has expired."""

        def once(client: etcd3.Etcd3Client) -> Callable[..., Any]:
            return lambda request, **how: next(
                client.leasestub.LeaseKeepAlive(iter((request,)), **how)
            )

        self._call(once, rpc.LeaseKeepAliveRequest(ID=lease))

    def _range(self, request: rpc.RangeRequest) -> rpc.RangeResponse:
        return self._call(lambda client: client.kvstub.Range, request)

    def _sent(self, request: rpc.TxnRequest) -> Any:
        """The answer to come, or None when it could not even be sent."""
        member = self._members[self._turn]
        if self._address.user and member.login is None:
            return None
        return member.client.kvstub.Txn.future(
            request, timeout=self._timeout_s, metadata=member.login
        )

    def _landed(self, request: rpc.TxnRequest, answer: Any) -> bool:
        try:
            if answer is not None:
                return bool(answer.result().succeeded)
        except grpc.RpcError:
            pass  # `txn` tries again, and says what is wrong
        return self.txn(request)

    def _call(self, method: Method, request: Any, *, tries: int | None = None) -> Any:
        """
        The answer of the first member that gives one.

        *tries*: how many calls at most; None: as many as the time allows.
        """
        deadline_s = time.monotonic() + self._timeout_s
        logins = 0
        while True:
            turn = self._turn
            member = self._members[turn]
            left_s = deadline_s - time.monotonic()
            how: dict[str, Any] = {
                "timeout": max(0.05, min(left_s, self._timeout_s / len(self._members)))
            }
            try:
                if self._address.user and member.login is None:
                    self._log_in(member, **how)
                return method(member.client)(request, metadata=member.login, **how)
            except grpc.RpcError as error:
                if _is_expired_login(error) and logins == 0:
                    logins += 1
                    member.login = None
                    continue
                if not _may_pass(error):
                    raise self._translated(error) from error
                with self._lock:
                    if self._turn == turn:
                        self._turn = (turn + 1) % len(self._members)
                tries = None if tries is None else tries - 1
                if tries == 0 or time.monotonic() + _PAUSE_S >= deadline_s:
                    raise self._translated(error) from error
            if tries is None:
                time.sleep(_PAUSE_S)

    def _log_in(self, member: _Member, **how: Any) -> None:
        request = rpc.AuthenticateRequest(name=self._address.user, password=self._password)
        token = rpc.AuthStub(member.client.channel).Authenticate(request, **how).token
        member.login = (("token", token),)

    def _translated(self, error: grpc.RpcError) -> GearError:
        # gRPC wraps the reason into several others, the innermost comes last.
        reason = " ".join(str(error.details()).split()).removeprefix("etcdserver: ")
        match error.code():
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return TimedOut(f"etcd at {self._address} did not answer in {self._timeout_s:g} s")
            case grpc.StatusCode.UNAVAILABLE:
                reason = reason.removesuffix(": OK").rpartition(": ")[2].rstrip("]")
                hint = "; does it want etcds://?" if reason == "Socket closed" else ""
                return SourceUnavailable(f"no etcd answers at {self._address} ({reason}){hint}")
            case grpc.StatusCode.RESOURCE_EXHAUSTED if "space" in reason:
                return StorageFull(
                    f"etcd at {self._address} is full ({reason}); compact and defragment it, "
                    "or raise --quota-backend-bytes, then `etcdctl alarm disarm`"
                )
            case _:
                who = f" as user {self._address.user!r}" if self._address.user else ""
                return SourceUnavailable(f"etcd at {self._address} refused{who}: {reason}")


def _read(path: Any) -> str:
    try:
        return str(path.read_text()).rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"setting 'catalog': cannot read {path}: {_reason(error)}") from error


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not text"


def _may_pass(error: grpc.RpcError) -> bool:
    """Whether another try, or another member, may do better."""
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def _is_expired_login(error: grpc.RpcError) -> bool:
    """etcd forgets tokens after 5 minutes, and all of them when users change."""
    return error.code() == grpc.StatusCode.UNAUTHENTICATED or "auth store is old" in str(
        error.details()
    )

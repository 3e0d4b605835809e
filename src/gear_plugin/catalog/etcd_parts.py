"""
What everything that Gear keeps in etcd shares: the format's number, and the
parts of transactions.

Safe from any thread.
"""

from __future__ import annotations

from gear_plugin.catalog.etcd_address import EtcdAddress
from gear_plugin.catalog.etcd_client import EtcdClient, rpc
from gear_plugin.errors import Unsupported

FORMAT = "1"
"""Of the key `format`, which the first writer sets."""


def open_etcd(address: EtcdAddress, *, timeout_s: float) -> EtcdClient:
    """
    A client of *address*, which is asked at once.

    Raises BadConfig (a file that the address names cannot be read),
    Unavailable, Unsupported (a newer Gear wrote there).
    """
    client = EtcdClient(address, timeout_s=timeout_s)
    try:
        for value in client.first_contact(f"{address.prefix}/format".encode()).kvs:
            if value.value != FORMAT.encode():
                raise Unsupported(
                    f"the catalog in etcd at {address} has format {value.value[:20]!r}, "
                    f"this Gear knows {FORMAT}; update it"
                )
    except BaseException:
        client.close()
        raise
    return client


def put(key: bytes, value: str, *, lease: int = 0) -> rpc.RequestOp:
    """Set the key."""
    request = rpc.PutRequest(key=key, value=value.encode(), lease=lease)
    return rpc.RequestOp(request_put=request)


def delete(key: bytes) -> rpc.RequestOp:
    """Remove the key, if it is there."""
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))


def is_at(key: bytes, mod_revision: int) -> rpc.Compare:
    """The key was last changed by that revision; 0: it is not there."""
    compare = rpc.Compare(key=key, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL)
    compare.mod_revision = mod_revision
    return compare


def exists(key: bytes) -> rpc.Compare:
    """The key is there."""
    compare = rpc.Compare(key=key, target=rpc.Compare.VERSION, result=rpc.Compare.GREATER)
    compare.version = 0
    return compare

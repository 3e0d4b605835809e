"""
The catalog in etcd, for a cluster.

All that one `put_image` writes carries its *generation*, a number that etcd
never gives twice, and is invisible until one transaction makes the generation
live.  Keys below the prefix (default `/gear`); all are text but the lists:

    format                      1
    images/<name>:<tag>         the record, JSON, with its generation
    live/<generation>           <name>:<tag>: the generations that records have
    oids/<OID>/<generation>     sha256:<64 hex>: the content of one path
    lists/<generation>/<nnnn>   the same pairs packed, by OID, for reading all of
                                them and for removing them
    pending/<generation>        <name>:<tag>: being written, or to be removed
    writers/<generation>        <name>:<tag>, on a lease: its writer lives
    loose/<OID>                 sha256:<64 hex>: named by hand, by no image
    cluster/...                 the nodes: `etcd_roster.py`

A push writes pending and writers; lists; OIDs; then, in one transaction, the
record and live, while the older generation goes from live to pending; last
the older generation is removed.  Every transaction asks that the writer's key
is there still: a writer that slept until its lease ran out writes no more.

Crash windows: before the commit the older record stands, whole; after it the
newer one does.  What is left is pending without a writer, and whoever writes
next removes it.  An OID is never written before the list that has it.

Safe from any thread, process and machine.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gear_plugin.catalog import etcd_layout as layout
from gear_plugin.catalog.base import ImageRecord
from gear_plugin.catalog.etcd_address import EtcdAddress
from gear_plugin.catalog.etcd_client import rpc
from gear_plugin.catalog.etcd_parts import FORMAT, delete, exists, is_at, open_etcd, put
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentNotFound, ImageNotFound, TimedOut, Unavailable
from gear_plugin.names import ImageId

log = logging.getLogger(__name__)

_BATCH = 128
"""Operations a transaction: etcd's default limit (--max-txn-ops)."""
_PAGE = 1000
_LIST_PAGE = 4
"""Lists an answer: 2 MiB of the 4 that gRPC takes."""
_LEASE_S = 60
"""How long a writer that died keeps others from removing what it left."""
_KEEP_S = 15.0
"""A writer that lives renews its lease this often."""

_Change = tuple[bytes, bytes | None]
"""A key and its new value; None: removed."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A record as it stands in etcd."""

    record: ImageRecord
    generation: str
    mod_revision: int
    """Of its key: another one after each change."""
    revision: int
    """Of the whole of etcd, when it was read."""


class EtcdCatalog:
    """
    The catalog at *address*; no call waits longer than *timeout_s* for an answer.

    Asks etcd at once; raises BadConfig (a file that the address names cannot
    be read), Unavailable, Unsupported (a newer Gear wrote it).
    """

    def __init__(self, address: EtcdAddress, *, timeout_s: float) -> None:
        self._prefix = address.prefix
        self._etcd = open_etcd(address, timeout_s=timeout_s)

    def put_image(self, record: ImageRecord, objects: Mapping[str, Digest]) -> None:
        pairs = layout.pack(objects)
        self._sweep()
        found = self._find(record.image)
        if (
            found is not None
            and self._pairs(found) == pairs
            and self._commit(record, found.generation, found)
        ):
            self._take_over(pairs)
            return  # the same files as before: one key has changed
        with self._writer(record.image) as generation:
            self._write(generation, pairs)
            while not self._commit(record, generation, self._find(record.image)):
                if not self._etcd.get(self._key(f"writers/{generation}")).kvs:
                    raise _too_late(record.image)
        self._take_over(pairs)
        self._sweep_if_possible()

    def get_image(self, image: ImageId) -> ImageRecord:
        return self._get(image).record

    def list_images(self) -> list[ImageRecord]:
        values = self._etcd.scan(self._key("images/"), page=_PAGE)
        records = [layout.decode_record(value.value)[0] for value in values]
        return sorted(records, key=lambda record: (record.image.name, record.image.tag))

    def remove_image(self, image: ImageId) -> bool:
        while (found := self._find(image)) is not None:
            name = self._key(f"images/{image}")
            change = rpc.TxnRequest(
                compare=[is_at(name, found.mod_revision)],
                success=[delete(name), *self._retire(found.generation, image)],
            )
            if self._etcd.txn(change):
                self._sweep_if_possible()
                return True
        return False

    def resolve(self, oid: str) -> Digest:
        Digest.from_hex(oid)
        found = self._etcd.page(self._key(f"oids/{oid}/"), limit=_PAGE)
        for value in found.kvs:
            live = self._key(f"live/{_last_word(value.key)}")
            if self._etcd.get(live, revision=found.header.revision).kvs:
                return layout.decode_digest(value.value)
        for value in self._etcd.get(self._key(f"loose/{oid}")).kvs:
            return layout.decode_digest(value.value)
        raise ContentNotFound(f"no image has an object {oid}")

    def objects_of(self, image: ImageId) -> frozenset[Digest]:
        return frozenset(content for _, content in layout.unpack(self._pairs(self._get(image))))

    def name_object(self, oid: str, digest: Digest) -> None:
        key = self._key(f"loose/{Digest.from_hex(oid).hex}")
        changes = [put(self._key("format"), FORMAT), put(key, str(digest))]
        self._etcd.txn(rpc.TxnRequest(success=changes))

    def loose_objects(self) -> frozenset[Digest]:
        values = self._etcd.scan(self._key("loose/"), page=_PAGE)
        return frozenset(layout.decode_digest(value.value) for value in values)

    def close(self) -> None:
        self._etcd.close()

    def _key(self, name: str) -> bytes:
        return f"{self._prefix}/{name}".encode()

    def _find(self, image: ImageId) -> _Found | None:
        answer = self._etcd.get(self._key(f"images/{image}"))
        for value in answer.kvs:
            record, generation = layout.decode_record(value.value)
            return _Found(record, generation, value.mod_revision, answer.header.revision)
        return None

    def _get(self, image: ImageId) -> _Found:
        found = self._find(image)
        if found is None:
            raise ImageNotFound(f"the catalog has no image {image}; push it first")
        return found

    def _pairs(self, found: _Found) -> bytes:
        """The packed pairs of a record, of the moment when it was read."""
        lists = self._key(f"lists/{found.generation}/")
        values = self._etcd.scan(lists, page=_LIST_PAGE, revision=found.revision)
        return b"".join(value.value for value in values)

    @contextlib.contextmanager
    def _writer(self, image: ImageId) -> Iterator[str]:
        """
        A new generation, pending, that can be written during the block.

        If it is not made live, whoever writes next removes it.
        """
        lease = self._etcd.grant_lease(_LEASE_S)
        generation = f"{lease:016x}"
        try:
            begin = [
                put(self._key("format"), FORMAT),
                put(self._key(f"pending/{generation}"), str(image)),
                put(self._key(f"writers/{generation}"), str(image), lease=lease),
            ]
            self._etcd.txn(rpc.TxnRequest(success=begin))
            yield generation
        finally:
            with contextlib.suppress(Unavailable):  # it ends by itself too
                self._etcd.revoke_lease(lease)

    def _write(self, generation: str, pairs: bytes) -> None:
        """All lists, and when they are there, all OIDs."""
        lists = (
            (self._key(f"lists/{generation}/{number:04}"), part)
            for number, part in enumerate(layout.split(pairs))
        )
        self._run(generation, lists, batch=1)
        oids = (
            (self._key(f"oids/{oid}/{generation}"), str(content).encode())
            for oid, content in layout.unpack(pairs)
        )
        self._run(generation, oids, batch=_BATCH)

    def _run(self, generation: str, changes: Iterable[_Change], *, batch: int) -> None:
        """Make all changes, keeping the writer alive; raises TimedOut when it has died."""
        alive = [exists(self._key(f"writers/{generation}"))]
        kept_s = time.monotonic()
        for is_done in self._etcd.txns(_transactions(changes, batch, alive)):
            if not is_done:
                raise _too_late(generation)
            if time.monotonic() - kept_s > _KEEP_S:
                self._etcd.keep_lease(int(generation, 16))
                kept_s = time.monotonic()

    def _commit(self, record: ImageRecord, generation: str, found: _Found | None) -> bool:
        """
        Put the record, of *generation*, in the place of *found*, in one step.

        False when somebody else has written or removed it since.
        """
        name = self._key(f"images/{record.image}")
        compare = [is_at(name, found.mod_revision if found else 0)]
        success = [put(name, layout.encode_record(record, generation))]
        if found is None or found.generation != generation:
            compare.append(exists(self._key(f"writers/{generation}")))
            success.append(put(self._key(f"live/{generation}"), str(record.image)))
            success.append(delete(self._key(f"pending/{generation}")))
            if found is not None:
                success += self._retire(found.generation, record.image)
        if self._etcd.txn(rpc.TxnRequest(compare=compare, success=success)):
            return True
        # It may be done all the same, if the answer to a first try was lost.
        now = self._find(record.image)
        return now is not None and (now.generation, now.record) == (generation, record)

    def _take_over(self, pairs: bytes) -> None:
        """
        What an image has is not loose any more.

        After the commit, so that nobody ever sees a name without content; a
        crash in between leaves names that the image's own hide.
        """
        values = self._etcd.scan(self._key("loose/"), page=_PAGE)
        loose = {_last_word(value.key) for value in values}
        if not loose:
            return
        names: Iterable[_Change] = (
            (self._key(f"loose/{oid}"), None) for oid, _ in layout.unpack(pairs) if oid in loose
        )
        try:
            for _ in self._etcd.txns(_transactions(names, _BATCH)):
                pass
        except Unavailable as error:
            log.info("names stay loose until the next push: %s", error)

    def _retire(self, generation: str, image: ImageId) -> list[rpc.RequestOp]:
        """What makes a live generation one that is to be removed."""
        return [
            delete(self._key(f"live/{generation}")),
            put(self._key(f"pending/{generation}"), str(image)),
        ]

    def _sweep(self) -> None:
        """Remove every generation that is pending and has no writer."""
        pending = self._etcd.page(self._key("pending/"), limit=_PAGE)
        # Both of one moment: a generation that is live now was pending before.
        writers = self._etcd.scan(
            self._key("writers/"), page=_PAGE, revision=pending.header.revision
        )
        written = {_last_word(value.key) for value in writers}
        for value in pending.kvs:
            if _last_word(value.key) not in written:
                self._remove(_last_word(value.key))

    def _sweep_if_possible(self) -> None:
        """After a commit, when it is too late to fail."""
        try:
            self._sweep()
        except Unavailable as error:
            log.info("what was replaced stays until the next push: %s", error)

    def _remove(self, generation: str) -> None:
        for part in self._etcd.scan(self._key(f"lists/{generation}/"), page=_LIST_PAGE):
            oids: Iterable[_Change] = (
                (self._key(f"oids/{oid}/{generation}"), None)
                for oid, _ in layout.unpack(part.value)
            )
            for _ in self._etcd.txns(_transactions(oids, _BATCH)):
                pass
            self._etcd.txn(rpc.TxnRequest(success=[delete(part.key)]))
        self._etcd.txn(rpc.TxnRequest(success=[delete(self._key(f"pending/{generation}"))]))


def _too_late(what: object) -> TimedOut:
    return TimedOut(
        f"the catalog heard nothing of the push of {what} for {_LEASE_S} s and gave it up; "
        "push again"
    )


def _last_word(key: bytes) -> str:
    return key.rpartition(b"/")[2].decode()


def _transactions(
    changes: Iterable[_Change], batch: int, compare: Sequence[rpc.Compare] = ()
) -> Iterator[rpc.TxnRequest]:
    # Filled in place: handing finished messages over copies each, 40 % of the time.
    left = iter(changes)
    while some := list(itertools.islice(left, batch)):
        request = rpc.TxnRequest(compare=compare)
        for key, value in some:
            change = request.success.add()
            if value is None:
                change.request_delete_range.key = key
            else:
                change.request_put.key = key
                change.request_put.value = value
        yield request

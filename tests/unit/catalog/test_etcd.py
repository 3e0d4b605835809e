"""What only the etcd catalog promises: its keys, every crash window, and a cluster that fails."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from gear_plugin.catalog import Catalog, open_catalog
from gear_plugin.catalog.etcd import EtcdCatalog
from gear_plugin.catalog.etcd_address import EtcdAddress
from gear_plugin.catalog.etcd_client import EtcdClient, rpc
from gear_plugin.digest import Digest
from gear_plugin.errors import Damaged, ImageNotFound, TimedOut, Unsupported
from gear_plugin.names import ImageId
from tests.unit.catalog.records import IMAGE, assert_unknown, check, objects, record


@pytest.fixture
def catalog(etcd_url: str) -> Iterator[Catalog]:
    opened = open_catalog(etcd_url)
    yield opened
    opened.close()


class Keys:
    """What is in etcd below a catalog's prefix, past the catalog."""

    def __init__(self, url: str) -> None:
        self.address = EtcdAddress.parse(url)
        self.client = EtcdClient(self.address, timeout_s=10)

    def all(self) -> dict[str, bytes]:
        found = self.client.scan(self.address.prefix.encode() + b"/", page=1000)
        cut = len(self.address.prefix) + 1
        return {value.key.decode()[cut:]: value.value for value in found}

    def count(self, kind: str) -> int:
        return sum(key.startswith(kind + "/") for key in self.all())

    def put(self, name: str, value: bytes) -> None:
        key = f"{self.address.prefix}/{name}".encode()
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value))
        assert self.client.txn(rpc.TxnRequest(success=[put]))

    def let_leases_end(self) -> None:
        """As if the time of every writer was over."""
        for key in self.all():
            if key.startswith("writers/"):
                self.client.revoke_lease(int(key.rpartition("/")[2], 16))


@pytest.fixture
def keys(etcd_url: str) -> Iterator[Keys]:
    opened = Keys(etcd_url)
    yield opened
    opened.client.close()


def assert_tidy(keys: Keys, version: int) -> None:
    """Exactly the keys of *version*, as `etcd.py` lists them."""
    found = keys.all()
    stored = json.loads(found.pop(f"images/{IMAGE}"))
    generation = stored["generation"]
    assert stored["index"] == str(record(version).index)
    assert found.pop("format") == b"1"
    assert found.pop(f"live/{generation}") == str(IMAGE).encode()
    assert len(found.pop(f"lists/{generation}/0000")) == 3 * 64
    assert found == {
        f"oids/{oid}/{generation}": str(content).encode()
        for oid, content in objects(version).items()
    }


def test_oid_and_content_can_be_read_with_etcds_own_tools(catalog: Catalog, keys: Keys) -> None:
    """
    `etcdctl get --prefix /gear/oids/<OID>` gives the CID; nothing else is left about.
    """
    catalog.put_image(record(1), objects(1))
    assert_tidy(keys, 1)
    catalog.put_image(record(2), objects(2))
    assert_tidy(keys, 2)


def test_a_removed_image_leaves_no_key(catalog: Catalog, keys: Keys) -> None:
    """But the format's."""
    catalog.put_image(record(1), objects(1))
    assert catalog.remove_image(IMAGE)
    assert keys.all() == {"format": b"1"}


def test_the_same_objects_again_change_one_key(catalog: Catalog, keys: Keys) -> None:
    """A push that is repeated costs etcd nothing."""
    catalog.put_image(record(1), objects(1))
    before = keys.all()
    catalog.put_image(record(2), objects(1))
    after = keys.all()
    assert {key for key in after if after[key] != before.get(key)} == {f"images/{IMAGE}"}
    assert catalog.get_image(IMAGE) == record(2)


def test_more_objects_than_one_list_or_transaction_holds(catalog: Catalog, keys: Keys) -> None:
    """Lists and OIDs are split, and removed again."""
    many = objects(1, count=9000)
    catalog.put_image(record(1), many)
    assert catalog.objects_of(IMAGE) == set(many.values())
    assert (keys.count("lists"), keys.count("oids")) == (2, 9000)
    catalog.put_image(record(2), objects(2))
    assert_tidy(keys, 2)


class Died(BaseException):
    """The process is no more; what it calls from now on does nothing."""


class Mortal(EtcdClient):
    """A client whose process dies before its nth change of etcd."""

    changes_left = 10**9

    def txn(self, request: rpc.TxnRequest) -> bool:
        self._live(1)
        return super().txn(request)

    def txns(self, requests: Iterable[rpc.TxnRequest]) -> Iterator[bool]:
        for request in requests:
            yield self.txn(request)

    def grant_lease(self, ttl_s: int) -> int:
        self._live(1)
        return super().grant_lease(ttl_s)

    def revoke_lease(self, lease: int) -> None:
        self._live(1)
        super().revoke_lease(lease)

    def _live(self, changes: int) -> None:
        self.changes_left -= changes
        if self.changes_left < 0:
            raise Died


def mortal(etcd_url: str, changes: int, kind: type[Mortal] = Mortal) -> EtcdCatalog:
    address = EtcdAddress.parse(etcd_url)
    catalog = EtcdCatalog(address, timeout_s=10)
    catalog.close()
    client = kind(address, timeout_s=10)
    client.changes_left = changes
    catalog._etcd = client
    return catalog


def test_a_crash_at_any_point_leaves_the_older_or_the_newer_image(
    etcd_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Whole in either case; the next push completes it and removes what was left.
    """
    monkeypatch.setattr("gear_plugin.catalog.etcd._BATCH", 2)
    catalog = open_catalog(etcd_url)
    crashes, seen = 0, set()
    while True:
        catalog.put_image(record(1), objects(1))
        dying = mortal(etcd_url, crashes)
        try:
            dying.put_image(record(2), objects(2))
        except Died:
            pass
        else:
            break
        finally:
            dying.close()
        stands = catalog.get_image(IMAGE).created_s
        seen.add(stands)
        check(catalog, stands, 1, 2)
        keys.let_leases_end()
        catalog.put_image(record(3), objects(3))
        check(catalog, 3, 1, 2)
        assert_tidy(keys, 3)
        crashes += 1
    assert seen == {1, 2}
    assert crashes >= 8
    catalog.close()


def test_leftovers_of_a_writer_that_may_live_are_spared(
    catalog: Catalog, etcd_url: str, keys: Keys
) -> None:
    """Another image's push takes them away once the writer's lease has ended."""
    dying = mortal(etcd_url, 4)
    with pytest.raises(Died):
        dying.put_image(record(1), objects(1))
    dying.close()
    other = ImageId("other", "1")
    catalog.put_image(record(1, other), objects(1, other))
    assert keys.count("pending") == 1
    keys.let_leases_end()
    catalog.put_image(record(2, other), objects(2, other))
    assert keys.count("pending") == 0
    assert keys.count("oids") == 3
    for oid in objects(1):
        assert_unknown(catalog, oid)


def test_a_writer_that_slept_too_long_writes_nothing_more(
    catalog: Catalog, etcd_url: str, keys: Keys
) -> None:
    """Its objects have been removed, so its record must not appear."""
    catalog.put_image(record(1), objects(1))

    class Sleepy(Mortal):
        def _live(self, changes: int) -> None:
            super()._live(changes)
            if self.changes_left == 1:
                keys.let_leases_end()
                catalog.put_image(record(3), objects(3))
                self.changes_left = 10**9

    for changes in (4, 5, 6):  # before the list, the OIDs, the commit
        sleepy = mortal(etcd_url, changes, Sleepy)
        with pytest.raises(TimedOut, match="push again"):
            sleepy.put_image(record(2), objects(2))
        sleepy.close()
        check(catalog, 3, 1, 2)
        catalog.put_image(record(1), objects(1))
    assert_tidy(keys, 1)


def test_every_request_may_be_sent_twice(
    etcd_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As happens when the answer to the first was lost."""

    class Twice(Mortal):
        def txn(self, request: rpc.TxnRequest) -> bool:
            super().txn(request)
            return super().txn(request)

        def revoke_lease(self, lease: int) -> None:
            super().revoke_lease(lease)
            super().revoke_lease(lease)

    catalog = mortal(etcd_url, 10**9, Twice)
    for version in (1, 2):
        catalog.put_image(record(version), objects(version))
        check(catalog, version, 1, 2)
        assert_tidy(keys, version)
    catalog.close()


def test_a_killed_process_leaves_no_half_image(catalog: Catalog, etcd_url: str, keys: Keys) -> None:
    """kill -9 of a real writer, with thousands of pairs on their way."""
    catalog.put_image(record(1), objects(1))
    writer = f"""
from gear_plugin.catalog import open_catalog
from tests.unit.catalog.records import record, objects
catalog = open_catalog({etcd_url!r})
print("begins", flush=True)
catalog.put_image(record(2), objects(2, count=20_000))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", writer], cwd=Path(__file__).parents[3], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begins\n"
    while keys.count("oids") < 1000:
        time.sleep(0.01)
    process.kill()
    process.wait()
    process.stdout.close()
    check(catalog, 1, 2)
    keys.let_leases_end()
    catalog.put_image(record(3), objects(3))
    check(catalog, 3, 1, 2)
    assert_tidy(keys, 3)


def test_pushers_of_one_image_at_once(etcd_url: str, keys: Keys) -> None:
    """One of them is last, and all of it is there; nothing of the others is."""
    failures: list[BaseException] = []
    whole = [frozenset(objects(version).values()) for version in (1, 2, 3)]

    def push(version: int) -> None:
        catalog = open_catalog(etcd_url)
        try:
            for _ in range(3):
                catalog.put_image(record(version), objects(version))
                assert catalog.objects_of(IMAGE) in whole
        except BaseException as error:
            failures.append(error)
        finally:
            catalog.close()

    pushers = [threading.Thread(target=push, args=(version,)) for version in (1, 2, 3)]
    for pusher in pushers:
        pusher.start()
    for pusher in pushers:
        pusher.join()
    assert failures == []
    catalog = open_catalog(etcd_url)
    last = catalog.get_image(IMAGE).created_s
    check(catalog, last, 1, 2, 3)
    catalog.put_image(record(last), objects(last))  # the others' may just have ended
    assert_tidy(keys, last)
    catalog.close()


def test_a_newer_format_is_refused(catalog: Catalog, keys: Keys, etcd_url: str) -> None:
    """A catalog of a later Gear is not touched."""
    catalog.put_image(record(1), objects(1))
    keys.put("format", b"2")
    with pytest.raises(Unsupported, match="update"):
        open_catalog(etcd_url)


def test_damaged_values_are_named(catalog: Catalog, keys: Keys) -> None:
    """Others may write to the same etcd."""
    catalog.put_image(record(1), objects(1))
    (oid,) = list(objects(1))[:1]
    (key,) = (key for key in keys.all() if key.startswith(f"oids/{oid}"))
    keys.put(key, b"nonsense")
    with pytest.raises(Damaged, match="nonsense"):
        catalog.resolve(oid)
    (key,) = (key for key in keys.all() if key.startswith("lists/"))
    keys.put(key, b"odd")
    with pytest.raises(Damaged, match="list"):
        catalog.objects_of(IMAGE)
    keys.put(f"images/{IMAGE}", b'{"image": 3}')
    with pytest.raises(Damaged, match="record"):
        catalog.list_images()


def test_prefixes_are_apart(etcd_url: str) -> None:
    """Two catalogs in one etcd, the one's prefix at the beginning of the other's."""
    one, two = open_catalog(etcd_url), open_catalog(etcd_url + "0")
    one.put_image(record(1), objects(1))
    with pytest.raises(ImageNotFound):
        two.get_image(IMAGE)
    assert two.list_images() == []
    one.close()
    two.close()


def test_grpc_is_loaded_by_who_uses_etcd(tmp_path: Path) -> None:
    """It takes 0.3 s."""
    program = (
        "import sys, gear_plugin.catalog as c;"
        f"c.open_catalog('sqlite://{tmp_path}/c').close(); print('grpc' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_digest_of_a_pair_is_the_contents(catalog: Catalog) -> None:
    """Distinct paths with one content are one object."""
    same = dict.fromkeys(objects(1), Digest.of(b"x"))
    catalog.put_image(record(1), same)
    assert catalog.objects_of(IMAGE) == {Digest.of(b"x")}

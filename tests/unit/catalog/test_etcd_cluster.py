"""The etcd catalog when etcd is down, slow, full, closed to us, or comes back."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gear_plugin.catalog import Catalog, open_catalog
from gear_plugin.catalog.etcd_address import EtcdAddress
from gear_plugin.catalog.etcd_client import EtcdClient, rpc
from gear_plugin.errors import BadConfig, GearError, SourceUnavailable, StorageFull, TimedOut
from tests import certificates
from tests.etcd_server import EtcdServer
from tests.unit.catalog.records import IMAGE, check, objects, record

Start = Callable[..., EtcdServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start an etcd of the test's own."""
    started: list[EtcdServer] = []

    def start(*words: str, tls: Path | None = None) -> EtcdServer:
        server = EtcdServer(tmp_path / f"etcd-{len(started)}", *words, tls=tls)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refused(kind: type[GearError], call: Callable[[], object]) -> str:
    """The message, one line, of the error that *call* raises."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250
    return message


def test_nobody_there_is_told_at_once(closed_port: int) -> None:
    """Which address, and why; long before the time limit."""
    url = f"etcd://127.0.0.1:{closed_port}"
    message = refused(SourceUnavailable, lambda: open_catalog(url, timeout_s=600))
    assert f"no etcd answers at 127.0.0.1:{closed_port}" in message
    assert "refused" in message


def test_a_name_that_is_nobodys(closed_port: int) -> None:
    """A typing error in the setting looks like this."""
    url = f"etcd://nosuch.invalid:{closed_port}"
    assert "nosuch.invalid" in refused(SourceUnavailable, lambda: open_catalog(url, timeout_s=20))


def test_one_that_is_no_etcd() -> None:
    """It takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"etcd://127.0.0.1:{silent.getsockname()[1]}"
        refused((SourceUnavailable, TimedOut), lambda: open_catalog(url, timeout_s=1))  # type: ignore[arg-type]


def test_a_slow_etcd_is_waited_for_until_the_limit(start: Start) -> None:
    """Then the call says so; when etcd answers again, the same catalog goes on."""
    server = start()
    catalog = open_catalog(f"etcd://127.0.0.1:{server.port}", timeout_s=20)
    catalog.put_image(record(1), objects(1))
    catalog.close()
    catalog = open_catalog(f"etcd://127.0.0.1:{server.port}", timeout_s=0.5)
    server.pause()
    try:
        for call in (
            lambda: catalog.put_image(record(2), objects(2)),
            lambda: catalog.get_image(IMAGE),
            catalog.list_images,
            lambda: catalog.objects_of(IMAGE),
            lambda: catalog.remove_image(IMAGE),
        ):
            assert "did not answer in 0.5 s" in refused(TimedOut, call)
    finally:
        server.resume()
    _until_it_answers(catalog)
    check(catalog, 1, 2)
    catalog.close()


def test_a_catalog_finds_an_etcd_that_comes_back(start: Start) -> None:
    """Killed and started again: what was recorded is there, and no new catalog is needed."""
    server = start()
    catalog = open_catalog(f"etcd://127.0.0.1:{server.port}", timeout_s=8)
    catalog.put_image(record(1), objects(1))
    server.kill()
    assert "no etcd answers" in refused(
        SourceUnavailable, lambda: catalog.put_image(record(2), objects(2))
    )
    server.start()
    _until_it_answers(catalog)
    check(catalog, 1, 2)
    catalog.put_image(record(2), objects(2))
    check(catalog, 2, 1)
    catalog.close()


def test_a_short_outage_is_not_noticed(start: Start) -> None:
    """A call waits for an etcd that is being restarted."""
    server = start()
    catalog = open_catalog(f"etcd://127.0.0.1:{server.port}", timeout_s=60)
    catalog.put_image(record(1), objects(1))
    server.stop()
    server.start()
    check(catalog, 1)
    catalog.close()


def _until_it_answers(catalog: Catalog) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            catalog.list_images()
        except (SourceUnavailable, TimedOut):
            assert time.monotonic() < deadline_s
        else:
            return


@pytest.mark.parametrize("first", [True, False])
def test_another_member_takes_over(etcd_server: EtcdServer, closed_port: int, first: bool) -> None:
    """One that is down costs nothing but the try."""
    members = [f"127.0.0.1:{closed_port}", f"127.0.0.1:{etcd_server.port}"]
    hosts = ",".join(members if first else reversed(members))
    catalog = open_catalog(f"etcd://{hosts}/takes-over-{first}", timeout_s=20)
    catalog.put_image(record(1), objects(1))
    check(catalog, 1)
    catalog.close()


def test_a_full_etcd_is_storage_full(start: Start) -> None:
    """The message says what an operator does about it; the older image stands."""
    server = start("--quota-backend-bytes", "1000000")
    catalog = open_catalog(f"etcd://127.0.0.1:{server.port}", timeout_s=20)
    catalog.put_image(record(1), objects(1))
    message = refused(StorageFull, lambda: catalog.put_image(record(2), objects(2, count=20_000)))
    assert "--quota-backend-bytes" in message
    check(catalog, 1)
    catalog.close()


def _enable_users(server: EtcdServer, password: str) -> None:
    """Users root and gear, the second with /gear/ alone."""
    client = EtcdClient(EtcdAddress.parse(f"etcd://127.0.0.1:{server.port}"), timeout_s=20)
    auth = rpc.AuthStub(client._members[0].client.channel)
    gear = rpc.AuthRoleGrantPermissionRequest(name="gear")
    gear.perm.permType, gear.perm.key, gear.perm.range_end = 2, b"/gear/", b"/gear0"
    auth.RoleAdd(rpc.AuthRoleAddRequest(name="root"))
    auth.RoleAdd(rpc.AuthRoleAddRequest(name="gear"))
    auth.RoleGrantPermission(gear)
    for user in ("root", "gear"):
        auth.UserAdd(rpc.AuthUserAddRequest(name=user, password=password))
        auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=user, role=user))
    auth.AuthEnable(rpc.AuthEnableRequest())
    client.close()


def test_users_and_passwords(start: Start, tmp_path: Path) -> None:
    """
    The right one may write below its prefix; any other is refused in one line.
    """
    server = start()
    _enable_users(server, "secret")
    (tmp_path / "good").write_text("secret\n")
    (tmp_path / "bad").write_text("wrong\n")

    def url(password: str, prefix: str = "gear") -> str:
        at = f"127.0.0.1:{server.port}/{prefix}"
        return f"etcd://gear@{at}?password_file={tmp_path}/{password}"

    catalog = open_catalog(url("good"), timeout_s=20)
    catalog.put_image(record(1), objects(1))
    check(catalog, 1)

    wrong = refused(SourceUnavailable, lambda: open_catalog(url("bad")))
    assert "as user 'gear'" in wrong
    assert "wrong" not in wrong
    nobody = f"etcd://127.0.0.1:{server.port}/gear"
    assert "user name is empty" in refused(SourceUnavailable, lambda: open_catalog(nobody))
    elsewhere = refused(SourceUnavailable, lambda: open_catalog(url("good", "elsewhere")))
    assert "permission denied" in elsewhere
    assert "missing" in refused(BadConfig, lambda: open_catalog(url("missing")))

    # etcd forgets who is logged in when it is started again.
    server.stop()
    server.start()
    check(catalog, 1)
    catalog.put_image(record(2), objects(2))
    check(catalog, 2, 1)
    catalog.close()


def test_tls(start: Start, tmp_path: Path) -> None:
    """
    With the authority that signed the server's certificate, and no other.
    """
    ours, other = certificates.make(tmp_path / "ours"), certificates.make(tmp_path / "other")
    server = start(tls=ours)
    at = f"127.0.0.1:{server.port}/gear"
    catalog = open_catalog(f"etcds://{at}?ca={ours}/ca.pem", timeout_s=20)
    catalog.put_image(record(1), objects(1))
    check(catalog, 1)
    catalog.close()
    for url in (f"etcds://{at}?ca={other}/ca.pem", f"etcd://{at}"):
        refused(SourceUnavailable, lambda url=url: open_catalog(url, timeout_s=20))  # type: ignore[misc]
    assert "no-such" in refused(BadConfig, lambda: open_catalog(f"etcds://{at}?ca=/no-such"))


def test_client_certificates(start: Start, tmp_path: Path) -> None:
    """
    An etcd that asks for one serves who has it.
    """
    tls = certificates.make(tmp_path / "tls")
    server = start("--client-cert-auth", "--trusted-ca-file", str(tls / "ca.pem"), tls=tls)
    url = f"etcds://127.0.0.1:{server.port}/gear?ca={tls}/ca.pem"
    refused(SourceUnavailable, lambda: open_catalog(url, timeout_s=20))
    catalog = open_catalog(f"{url}&cert={tls}/server.pem&key={tls}/server.key", timeout_s=20)
    catalog.put_image(record(1), objects(1))
    check(catalog, 1)
    catalog.close()


def test_nothing_but_the_error_is_written(
    closed_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """gRPC has its own log on stderr, which is not for our users."""
    refused(SourceUnavailable, lambda: open_catalog(f"etcd://127.0.0.1:{closed_port}"))
    assert capfd.readouterr() == ("", "")

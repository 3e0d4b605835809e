"""
A fleet that starts one image reads each object from the store about twice, and
goes on when any part of the cluster dies, lies or hangs.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from tests.cluster.conftest import read_everywhere
from tests.cluster.fleet import MANAGER_PORT, ClusterNode, Fleet, Image
from tests.cluster.network import address
from tests.cluster.reads import reads
from tests.engine.filetrace import OpenTrace
from tests.waiting import eventually

pytestmark = pytest.mark.root

MIB = 1 << 20
AHEAD = Path(__file__).with_name("an_hour_ahead")
STALL_S = 60.0
OTHER_TOKEN = f"{'0' * 16}.{'0' * 64}"


def test_the_store_is_read_at_most_twice_an_object(fleet: Fleet) -> None:
    """
    All nodes start one image at once; what they got adds up.
    """
    image = Image.random("all at once", 60)
    fleet.publish(image)
    with OpenTrace(fleet.store) as trace:
        read_everywhere(image, fleet.nodes)
        counted = reads(trace)
    assert set(counted) == image.digests()
    assert max(counted.values()) <= 2
    have = sum(node.cached(digest).exists() for node in fleet.nodes for digest in image.digests())
    assert have == len(fleet.nodes) * len(image.files)


def test_a_second_start_reads_nothing_from_the_store(fleet: Fleet) -> None:
    """
    One node has the image; the others get it from homes alone, each object once.
    """
    image = Image.random("second")
    fleet.publish(image)
    read_everywhere(image, fleet.nodes)
    late = fleet.nodes[3]
    late.stop()
    for digest in image.digests():
        late.cached(digest).unlink(missing_ok=True)
    for folder in (late.root / "private").glob("*"):
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    fleet.start_nodes()
    with OpenTrace(fleet.store) as trace:
        read_everywhere(image, [late])
        counted = reads(trace)
    own = {digest for digest in image.digests() if late in fleet.homes_of(digest)}
    assert set(counted) <= own


def test_a_home_dies_in_mid_transfer(fleet: Fleet) -> None:
    image = Image.random("dies", 2, 12 * MIB)
    fleet.publish(image)
    digest = sorted(image.digests())[0]
    name = next(name for name in image.files if image_digest(image, name) == digest)
    asker = next(node for node in fleet.nodes if node not in fleet.homes_of(digest))
    first = fleet.asked_first(asker, digest)
    tree = asker.tree(image)
    fleet.network.slow_down(first.number, 20)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((tree / name).read_bytes()))
    reader.start()
    incoming = asker.root / "cache-incoming"
    eventually(lambda: any(file.stat().st_size for file in files_of(incoming)), "bytes come")
    first.kill_network_side()
    fleet.network.slow_down(first.number, 0)
    reader.join(60)
    assert found == [image.files[name]]


def test_a_manager_that_dies_is_not_missed(fleet: Fleet) -> None:
    """
    Reads go on, a node starts without it, and it finds all as it was.
    """
    fleet.kill_manager()
    try:
        image = Image.random("no manager")
        fleet.publish(image)
        restarted = fleet.nodes[1]
        restarted.stop()
        restarted.start()
        fleet.await_port(restarted)
        with OpenTrace(fleet.store) as trace:
            read_everywhere(image, fleet.nodes)
            counted = reads(trace)
        assert max(counted.values()) <= 2
    finally:
        fleet.start_manager()
    fleet.await_live(*fleet.nodes)


def test_etcd_dies_and_returns(fleet: Fleet) -> None:
    fleet.etcd.kill()
    try:
        image = Image.random("no etcd")
        fleet.publish(image)
        read_everywhere(image, fleet.nodes)
        assert fleet.ask("GET", "/healthz", token="").status == 200
    finally:
        fleet.etcd.start()
    eventually(lambda: fleet.ask("GET", "/nodes").status == 200, "the manager knows", timeout_s=60)
    fleet.await_live(*fleet.nodes)


def test_a_node_that_is_cut_off_runs_on_and_comes_back(fleet: Fleet) -> None:
    lonely, *others = fleet.nodes
    image, later = Image.random("cut"), Image.random("cut, later")
    fleet.publish(image)
    fleet.publish(later)
    tree = lonely.tree(image)
    fleet.network.cut(lonely.number)
    try:
        fleet.await_live(lonely, live=False)
        assert (tree / "f000").read_bytes() == image.files["f000"]
        read_everywhere(later, others)
    finally:
        fleet.network.mend(lonely.number)
    fleet.await_live(*fleet.nodes)
    read_everywhere(later, [lonely])


def test_wrong_bytes_from_a_node_are_refused(fleet: Fleet) -> None:
    """
    The asker takes them from somewhere else, and says who sent them.
    """
    image = Image.random("liar")
    fleet.publish(image)
    digest = sorted(image.digests())[0]
    name = next(name for name in image.files if image_digest(image, name) == digest)
    asker = next(node for node in fleet.nodes if node not in fleet.homes_of(digest))
    liar = fleet.asked_first(asker, digest)
    put_into_cache(liar, digest, bytes(len(image.files[name])))
    assert (asker.tree(image) / name).read_bytes() == image.files[name]
    assert asker.said(f"{liar.address} is set aside .*wrong bytes")
    liar.cached(digest).unlink()


def test_a_node_that_sends_a_byte_a_second_holds_nobody_up(fleet: Fleet) -> None:
    image = Image.random("slow", 8, 200_000)
    fleet.publish(image)
    slow = fleet.nodes[0]
    slow.stop()
    slow.settings(upload_limit=1)
    try:
        fleet.start_nodes()
        begun = time.monotonic()
        read_everywhere(image, fleet.nodes[1:])
        assert time.monotonic() - begun < 40
    finally:
        slow.stop()
        slow.settings(upload_limit=0)


def test_a_full_disk_of_a_home_is_passed_over(fleet: Fleet) -> None:
    image = Image.random("full", 12, 300_000)
    fleet.publish(image)
    full = fleet.nodes[2]
    full.stop()
    small = full.base / "small"
    small.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)], check=True)
    try:
        full.settings(root=small, start_profiles="false")
        (small / "node-id").write_bytes((full.root / "node-id").read_bytes())
        fleet.start_nodes()
        (small / "filler").write_bytes(bytes(int(2.9 * MIB) - used(small)))
        read_everywhere(image, [node for node in fleet.nodes if node is not full])
    finally:
        full.stop()
        full.settings(root=full.root)
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_store_that_hangs_holds_up_nothing_that_a_node_has(fleet: Fleet) -> None:
    """
    An object that nobody has ends in an error in time, and opens when the store returns.
    """
    from tests.cluster.hanging import hanging_store

    here, nowhere = Image.random("hang, here"), Image.random("hang, nowhere", 4)
    fleet.publish(here)
    fleet.publish(nowhere)
    read_everywhere(here, fleet.nodes[:1])
    with hanging_store(fleet) as store:
        fleet.start_nodes()
        read_everywhere(here, fleet.nodes[:1])
        store.hang()
        trees = [node.tree(nowhere) for node in fleet.nodes]
        begun = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            (trees[0] / "f000").read_bytes()
        assert time.monotonic() - begun < 40
        while time.monotonic() - begun < STALL_S:
            read_everywhere(here, fleet.nodes[:1])
            assert fleet.ask("GET", "/nodes").status == 200
            time.sleep(1)
        store.resume()
        eventually(lambda: reads_well(trees[0] / "f000", nowhere.files["f000"]), timeout_s=60)


def test_only_the_token_of_this_cluster_lets_in(fleet: Fleet) -> None:
    image = Image.random("token")
    digest = sorted(image.digests())[0]
    for number, paths in (
        (0, ("/nodes", "/metrics", f"/get/sha256:{digest}")),
        (1, ("/info", "/metrics", f"/download/sha256:{digest}")),
    ):
        for path in paths:
            method = "POST" if digest in path else "GET"
            for token, said in (
                ("", "missing"),
                (OTHER_TOKEN, "of cluster 0000"),
                ("x", "not the"),
            ):
                answer = fleet.ask(method, path, number=number, token=token)
                assert answer.status == 401, path
                assert said in answer.json()["message"]
        assert fleet.ask("GET", "/healthz", number=number, token="").status == 200


def test_a_node_with_another_clusters_token_says_so_and_stays_out(fleet: Fleet) -> None:
    stray = fleet.make_node(len(fleet.nodes), token=OTHER_TOKEN)
    real = fleet.nodes[-1]
    real.stop()
    stray.root = stray.base / "stray"
    stray.settings(root=stray.root)
    try:
        stray.start()
        eventually(lambda: stray.said("token of cluster 0000"), "it says why", timeout_s=30)
    finally:
        stray.close()


def test_a_clock_that_is_an_hour_off_matters_to_nobody(fleet: Fleet) -> None:
    image = Image.random("clock")
    fleet.publish(image)
    early = fleet.nodes[3]
    early.stop()
    usual = os.environ.get("PYTHONPATH")
    early.settings_of_others(PYTHONPATH=f"{AHEAD}:{usual}" if usual else str(AHEAD))
    try:
        fleet.start_nodes()
        assert early.said(time.strftime("%Y-%m-%d %H", time.localtime(time.time() + 3600)))
        with OpenTrace(fleet.store) as trace:
            read_everywhere(image, fleet.nodes)
            counted = reads(trace)
        assert max(counted.values()) <= 2
    finally:
        early.stop()
        early.settings_of_others(PYTHONPATH=usual)


def test_two_managers_are_one_cluster(fleet: Fleet) -> None:
    """
    Either takes nodes in; when one dies the other still knows who lives.
    """
    second = MANAGER_PORT + 10
    fleet.start_manager(second)
    moved = fleet.nodes[2]
    moved.stop()
    moved.settings(manager=f"{address(0)}:{second}")
    try:
        fleet.start_nodes()
        assert fleet.ask("GET", "/nodes", port=second).json() == fleet.ask("GET", "/nodes").json()
        fleet.kill_manager()
        try:
            lonely = fleet.nodes[0]
            lonely.stop()
            eventually(
                lambda: not live_at(fleet, second)[lonely.address], "it is dead", timeout_s=60
            )
        finally:
            fleet.start_manager()
        fleet.start_nodes()
        eventually(lambda: all(live_at(fleet, second).values()), "all are live", timeout_s=30)
    finally:
        moved.stop()
        moved.settings(manager=address(0))
        fleet.start_nodes()
        fleet.kill_manager(second)


def live_at(fleet: Fleet, port: int) -> dict[str, bool]:
    """Address to liveness, by the manager on *port*."""
    nodes = fleet.ask("GET", "/nodes", port=port).json()["nodes"]
    return {node["address"]: node["is_live"] for node in nodes}


def image_digest(image: Image, name: str) -> str:
    from gear_plugin.digest import Digest

    return Digest.of(image.files[name]).hex


def files_of(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except FileNotFoundError:
        return []


def put_into_cache(node: ClusterNode, digest: str, content: bytes) -> None:
    path = node.cached(digest)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def used(folder: Path) -> int:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def reads_well(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def test_a_damaged_store_is_repaired_from_the_nodes(fleet: Fleet) -> None:
    """
    By who knows the manager alone, and has no copy of anything.
    """
    image = Image.random("damaged")
    fleet.publish(image)
    read_everywhere(image, fleet.nodes[:1])
    digest = Digest.of(image.files["f003"])
    stored = fleet.store / "objects" / digest.shard_path
    stored.chmod(0o644)
    stored.write_bytes(b"damaged")
    done = fleet.gear_elsewhere(fleet.nodes[-1].number, "verify", "--repair", "--json")
    found = {one["digest"]: one["action"] for one in json.loads(done.stdout)["problems"]}
    assert found == {str(digest): "replaced"}
    assert stored.read_bytes() == image.files["f003"]
    assert f"store {fleet.store}" in done.stderr

"""
The benchmark itself: its wire, its store, and a run of the smallest image.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import results
from bench.disk import Disk
from bench.link import NODE, SERVER, SERVER_ADDRESS, Link, Network, StoreShare

from tests.engine.netns import inside
from tests.engine.plugin import REPO

pytestmark = [pytest.mark.engine, pytest.mark.root]

_SENT_BYTES = 4_000_000


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    made.start()
    try:
        yield made
    finally:
        made.stop()


def mounts_below(folder: Path) -> list[str]:
    """Mount points on or below *folder*."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for line in lines if (point := line.split()[4]).startswith(str(folder))]


def test_a_shaped_link_is_no_faster_than_its_rate(network: Network) -> None:
    """
    And its counter tells what came over it.
    """
    network.shape(Link.parse("20mbit"))
    send = ["socat", "-u", f"OPEN:/dev/zero,readbytes={_SENT_BYTES}", "TCP-LISTEN:7000"]
    sender = subprocess.Popen(inside(SERVER, send))
    before = network.received_bytes()
    begun = time.monotonic()
    receive = ["socat", "-u", f"TCP:{SERVER_ADDRESS}:7000,retry=50,interval=0.1", "STDOUT"]
    got = subprocess.run(inside(NODE, receive), capture_output=True, check=True).stdout
    took_s = time.monotonic() - begun
    assert sender.wait(10) == 0
    assert len(got) == _SENT_BYTES
    assert took_s > _SENT_BYTES * 8 / 20e6 * 0.9
    assert _SENT_BYTES < network.received_bytes() - before < _SENT_BYTES * 1.2


def test_a_store_crosses_the_link_and_is_seen_below_an_earlier_mount(
    network: Network, tmp_path: Path
) -> None:
    """
    As in a plugin that was started before; nothing is left behind.
    """
    (tmp_path / "store").mkdir()
    (tmp_path / "store/object").write_text("content")
    plugins = tmp_path / "plugin"
    plugins.mkdir()
    share = StoreShare(Link.parse("veth"), tmp_path / "store", tmp_path / "share")
    try:
        share.start()
        subprocess.run(["mount", "--rbind", str(share.folder), str(plugins)], check=True)
        subprocess.run(["mount", "--make-rslave", str(plugins)], check=True)
        before = network.received_bytes()
        assert (plugins / "store/object").read_text() == "content"
        assert network.received_bytes() > before
        (tmp_path / "store/second").write_text("more")
        share.remount()
        assert (plugins / "store/second").read_text() == "more"
    finally:
        subprocess.run(["umount", "-l", str(plugins)], check=False)
        share.stop()
    assert mounts_below(tmp_path) == []


def test_what_a_crashed_run_left_is_removed(tmp_path: Path) -> None:
    """
    Namespaces with processes in them, and the disk.
    """
    first = Network()
    first.start()
    left = subprocess.Popen(inside(NODE, ["sleep", "600"]))
    disk = Disk(tmp_path / "disk")
    disk.start()
    (disk.folder / "file").touch()
    second = Network()
    try:
        second.start()
        assert left.wait(10) == -9
        Disk(tmp_path / "disk").start()
        assert not (disk.folder / "file").exists()
    finally:
        Disk(tmp_path / "disk").stop()
        second.stop()
    assert mounts_below(tmp_path) == []
    assert not Path("/run/netns", NODE).exists()


def test_what_is_set_aside_stays_on_the_disk(tmp_path: Path) -> None:
    """
    Also in a folder that is a mount of its own, as a plugin's propagated one is.
    """
    disk = Disk(tmp_path / "disk")
    disk.start()
    try:
        root = disk.folder / "root"
        (root / "public/abc").mkdir(parents=True)
        subprocess.run(["mount", "--bind", str(root), str(root)], check=True)
        for content in ("one", "two"):
            (root / "public/abc").mkdir(exist_ok=True)
            (root / "public/abc/object").write_text(content)
            disk.set_aside(root / "public", root / "aside")
            assert list((root / "public").iterdir()) == []
        kept = [path.read_text() for path in (root / "aside").rglob("object")]
        assert sorted(kept) == ["one", "two"]
    finally:
        disk.stop()
    assert mounts_below(tmp_path) == []


def test_a_run_measures_both_systems(tmp_path: Path) -> None:
    """
    Every figure that one image on one way of mounting has.
    """
    words = "--images tiny --ways direct --parts cold,warm,tree --runs 2 --builds 1"
    words += f" --warm 1 --walks 1 --results {tmp_path}/results.json"
    command = [sys.executable, "-m", "bench", *words.split()]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = results.read(tmp_path / "results.json")
    found = {(row.link, row.system): set[str]() for row in rows}
    for row in rows:
        assert row.median > 0
        found[row.link, row.system].add(row.measure)
    cold = {"pull_s", "first_run_s", "pull_run_s", "disk_bytes", "warm_start_s"}
    known = {"known_run_s", "known_pull_run_s"}
    walks = {"warm_read_s", "warm_read_cpu_s", "warm_stat_s", "warm_stat_cpu_s"}
    assert found == {
        ("-", "overlay2"): {"image_bytes"},
        ("-", "gear"): {"build_mb_s", "index_bytes_per_file"},
        ("loopback", "overlay2"): cold | walks,
        ("loopback", "gear-direct"): cold | walks | known,
        ("100mbit", "overlay2"): cold | {"wire_bytes"},
        ("100mbit", "gear-direct"): cold | known | {"wire_bytes"},
    }
    assert "link: 100mbit" in done.stdout

"""The measurement of a node's port: its arithmetic, and its client against a small stand-in."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bench import port, port_client
from bench.port_client import BATCH, LARGE, SINGLE, BadAnswer, Port, Taken
from bench.results import Row

from gear_plugin.digest import Digest

CONTENTS = [b"%d" % number * 100 for number in range(1, 6)]
DIGESTS = [Digest.of(content) for content in CONTENTS]
OBJECTS = dict(zip(DIGESTS, CONTENTS, strict=True))
ABSENT = b"\xff" * 8


def record(digest: Digest, content: bytes) -> bytes:
    """One record of a batch."""
    return digest.raw + len(content).to_bytes(8, "big") + content


class StandIn(BaseHTTPRequestHandler):
    """A port as the client sees it."""

    protocol_version = "HTTP/1.1"
    objects = OBJECTS

    def do_POST(self) -> None:
        """`/download` and `/batch`."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer secret":
            self.answer(401, b"no")
        elif self.path == "/batch":
            asked = [Digest(body[at : at + 32]) for at in range(0, len(body), 32)]
            self.answer(200, b"".join(record(one, self.objects[one]) for one in asked))
        else:
            self.answer(200, self.objects[Digest.parse(self.path.rpartition("/")[2])])

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    """Where a stand-in answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def asked(address: str) -> Iterator[Port]:
    """A connection to it."""
    made = Port(address, "secret")
    yield made
    made.close()


def test_both_ways_of_asking_are_checked(asked: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A port that sends something else must not look fast.
    """
    port_client.check(asked, DIGESTS)
    monkeypatch.setattr(StandIn, "objects", OBJECTS | {DIGESTS[2]: b"wrong"})
    with pytest.raises(BadAnswer, match="wrong content"):
        port_client.check(asked, DIGESTS)


@pytest.mark.parametrize(("kind", "objects"), [(LARGE, 1), (SINGLE, 1), (BATCH, 5)])
def test_what_is_taken_is_counted(asked: Port, kind: str, objects: int) -> None:
    taken = port_client.take(asked, kind, DIGESTS, 0.05)
    assert taken.objects == objects * len(taken.answers_s)
    assert taken.seconds >= 0.05
    assert sum(taken.answers_s) == pytest.approx(taken.seconds)
    rounds, rest = divmod(taken.objects, len(DIGESTS))
    sizes = [len(content) for content in CONTENTS]
    assert taken.size_bytes == rounds * sum(sizes) + sum(sizes[:rest])


def test_a_refusal_ends_the_measurement(address: str) -> None:
    refused = Port(address, "wrong")
    with pytest.raises(BadAnswer, match="/batch: 401"):
        refused.batch(DIGESTS)
    refused.close()


def test_the_records_of_a_batch_are_those_asked_for() -> None:
    stream = b"".join(record(digest, content) for digest, content in OBJECTS.items())
    assert port_client.contents(stream, DIGESTS) == CONTENTS
    absent = record(DIGESTS[0], CONTENTS[0]) + DIGESTS[1].raw + ABSENT
    for bad in (stream[:-1], stream + b"x", stream[:20], absent):
        with pytest.raises(BadAnswer):
            port_client.contents(bad, DIGESTS[:2] if bad == absent else DIGESTS)
    with pytest.raises(BadAnswer, match="at byte 0"):
        port_client.contents(stream, [DIGESTS[1]])


def test_objects_are_where_a_node_looks_for_them(tmp_path: Path) -> None:
    for digest in port.fill(tmp_path, 3, 50):
        content = (tmp_path / "public" / digest.shard_path).read_bytes()
        assert len(content) == 50
        assert hashlib.sha256(content).digest() == digest.raw


def test_per_core_is_by_the_processor_time_that_was_used() -> None:
    """
    Two clients in parallel: together 3 GB in 2 s, for half a second of processor.
    """
    taken = [Taken(10, 1_000_000_000, 1.5, [0.1]), Taken(20, 2_000_000_000, 2.0, [0.1])]
    found = port.figures(LARGE, taken, 0.5)
    assert found == pytest.approx(
        {"port_mb_s": 1500.0, "port_core_mb_s": 6000.0, "port_cpu_s_gb": 0.5 / 3}
    )


def test_small_objects_have_rates_and_times_of_answers() -> None:
    answers = [0.001 * number for number in range(1, 101)]
    found = port.figures(SINGLE, [Taken(4000, 4_000_000, 2.0, answers)], 0.5)
    assert found["port_objects_s"] == 2000
    assert found["port_core_objects_s"] == 8000
    assert found["port_cpu_s_1000"] == pytest.approx(0.125)
    assert found["port_p50_s"] == pytest.approx(0.0505)
    assert found["port_p99_s"] == pytest.approx(0.1)


def test_usage_is_of_a_process_and_all_below_it() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert {os.getpid(), child.pid} <= set(port.family(os.getpid()))
        used = port.Server(os.getpid(), "", "").usage()
        assert used.cpu_s > 0
        assert used.rss_bytes > 1_000_000
    finally:
        child.kill()
        child.wait()


def test_proc_is_read_whatever_the_process_is_called() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = f"7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 {3 * ticks} {ticks} 0 0 20 0 1 0 9 0 0"
    assert port.processor_s(stat) == 4.0
    assert port.resident_bytes("Name:\tx\nVmRSS:\t    2048 kB\n") == 2 << 20
    assert port.resident_bytes("Name:\tkthreadd\n") == 0


def test_goals_are_for_large_objects_and_batches() -> None:
    def row(measure: str, kind: str, value: float, unit: str) -> Row:
        title = port.TITLES[kind]
        return Row(measure, title, "loopback", "1 client", value, value, value, 1, unit)

    found = port.verdicts(
        [
            row("port_core_mb_s", LARGE, 400.0, "MB/s"),
            row("port_core_mb_s", SINGLE, 9.0, "MB/s"),
            row("port_core_objects_s", BATCH, 4999.0, "objects/s"),
            row("port_core_objects_s", SINGLE, 2000.0, "objects/s"),
        ]
    )
    assert [verdict.met for verdict in found] == [True, False]

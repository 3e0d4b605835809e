"""
`python -m bench.port`: how fast one node's port serves objects, on loopback.

A node's port is started as a process, over a cache that holds what is asked for.
Processes of `port_client` take from it; the port's processor time is read from
/proc, so that figures "per core" are what was done divided by the processor time
that it took, however many cores there are and whatever else they do.  Tables and
goals go to stdout, rows to build/bench/port.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from tests import certificates
from tests.engine import plugin

from bench import port_client, report, results
from bench.options import counts
from bench.port_client import BATCH, LARGE, SINGLE, Port, Taken
from gear_plugin.cluster import Token
from gear_plugin.digest import Digest

LARGE_BYTES, LARGE_OBJECTS = 16 << 20, 4
SMALL_BYTES, SMALL_OBJECTS = 4 << 10, 4000
TITLES = {
    LARGE: "16 MiB objects",
    BATCH: f"4 KiB objects, batches of {port_client.BATCH_OBJECTS:,}",
    SINGLE: "4 KiB objects, one a request",
}
GOAL_MB_S, GOAL_OBJECTS_S = 400.0, 5000.0
"""Per core: large objects; small objects in batches."""
RESULTS = plugin.BUILD / "bench" / "port.json"
_START_S = 30.0
_TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What the port's processes have used."""

    cpu_s: float
    rss_bytes: int


def main() -> int:
    """See the module's text; the status is 0 however the figures turn out."""
    parser = ArgumentParser(prog="python -m bench.port", description="a node's port on loopback")
    parser.add_argument(
        "--clients", type=counts, default=(1, 4), metavar="N,N", help="processes that ask"
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each measurement")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of each run")
    parser.add_argument("--tls", action="store_true", help="the port speaks TLS only")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    chosen = parser.parse_args()
    found = results.Results()
    with TemporaryDirectory(prefix="gear-bench-port-") as folder:
        root = Path(folder)
        objects = {
            LARGE: fill(root, LARGE_OBJECTS, LARGE_BYTES),
            SINGLE: fill(root, SMALL_OBJECTS, SMALL_BYTES),
        }
        objects[BATCH] = objects[SINGLE]
        with serving(root, tls=chosen.tls) as server:
            with contextlib.closing(Port(server.address, server.token)) as asked:
                port_client.check(asked, objects[BATCH][:50])
            for _ in range(chosen.runs):
                for count in chosen.clients:
                    for kind, digests in objects.items():
                        measure(server, kind, digests, count, chosen.seconds, found)
    rows = found.rows()
    results.write(chosen.results, rows, merge=False)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in report.tables(rows):
        console.print(table)
    console.print(report.goals(verdicts(rows)))
    return 0


def fill(root: Path, count: int, size_bytes: int) -> list[Digest]:
    """Put objects of random bytes into the public cache of a node."""
    digests = []
    for _ in range(count):
        content = os.urandom(size_bytes)
        digest = Digest(hashlib.sha256(content).digest())
        place = root / "public" / digest.shard_path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        place.chmod(0o400)
        digests.append(digest)
    return digests


@dataclass(frozen=True)
class Server:
    """A running port."""

    pid: int
    address: str
    token: str

    def usage(self) -> Usage:
        """Of the process and all that it started."""
        cpu_s, rss_bytes = 0.0, 0
        for pid in family(self.pid):
            cpu_s += processor_s(Path(f"/proc/{pid}/stat").read_text())
            rss_bytes += resident_bytes(Path(f"/proc/{pid}/status").read_text())
        return Usage(cpu_s, rss_bytes)


@contextmanager
def serving(root: Path, *, tls: bool) -> Iterator[Server]:
    """A node's port over the cache in *root*, as `gear client` starts it."""
    address, token = f"127.0.0.1:{_free_port()}", Token.new().text()
    settings = {
        "ROOT": root,
        "RUN": root / "run",
        "STORE": root / "store",
        "CATALOG": f"sqlite://{root}/catalog.sqlite",
        "LISTEN": address,
        "TOKEN": token,
    }
    if tls:
        made = certificates.make(root / "tls")
        settings |= {"TLS_CERT": made / "server.pem", "TLS_KEY": made / "server.key"}
        address = port_client.TLS + address
    for name in ("run", "store"):
        (root / name).mkdir(exist_ok=True)
    environ = os.environ | {f"GEAR_{key}": str(value) for key, value in settings.items()}
    command = [sys.executable, "-m", "gear_plugin", "run-port"]
    with (root / "port.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        _await_answer(process, address, root / "port.log")
        yield Server(process.pid, address, token)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def measure(
    server: Server,
    kind: str,
    digests: Sequence[Digest],
    clients: int,
    seconds: float,
    found: results.Results,
) -> None:
    """One run of *clients* processes that ask for *seconds*."""
    system = f"{clients} client{'s' if clients > 1 else ''}"
    system += ", TLS" if server.address.startswith(port_client.TLS) else ""
    print(f"{TITLES[kind]}, {system}", file=sys.stderr)
    taken, before, after = _take(server, kind, digests, clients, seconds)
    for name, value in figures(kind, taken, after.cpu_s - before.cpu_s).items():
        found.add(name, TITLES[kind], "loopback", system, value)
    found.add("port_rss_bytes", TITLES[kind], "loopback", system, after.rss_bytes)


def _take(
    server: Server, kind: str, digests: Sequence[Digest], clients: int, seconds: float
) -> tuple[list[Taken], Usage, Usage]:
    """What each client got, and the port's usage before and after."""
    words = [sys.executable, "-m", "bench.port_client", server.address, server.token, kind]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([*words, str(seconds)], **pipes)  # type: ignore[call-overload]
        for _ in range(clients)
    ]
    try:
        for place, process in enumerate(running):
            turned = [*digests[place:], *digests[:place]]
            print(*(digest.hex for digest in turned), file=process.stdin, flush=True)
        for process in running:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a client of the benchmark did not start")
        before = server.usage()
        for process in running:
            print(file=process.stdin, flush=True)
        taken = [Taken(**json.loads(process.stdout.readline())) for process in running]
        return taken, before, server.usage()
    finally:
        for process in running:
            process.kill()
            process.communicate()


def figures(kind: str, taken: Sequence[Taken], cpu_s: float) -> dict[str, float]:
    """The measures of one run; *cpu_s* is the port's processor time."""
    size_bytes = sum(one.size_bytes for one in taken)
    objects = sum(one.objects for one in taken)
    seconds = max(one.seconds for one in taken)
    cpu_s = max(cpu_s, 1 / _TICKS_S)
    found = {"port_mb_s": size_bytes / seconds / 1e6, "port_core_mb_s": size_bytes / cpu_s / 1e6}
    if kind == LARGE:
        return found | {"port_cpu_s_gb": cpu_s / size_bytes * 1e9}
    answers = sorted(second for one in taken for second in one.answers_s)
    return found | {
        "port_objects_s": objects / seconds,
        "port_core_objects_s": objects / cpu_s,
        "port_cpu_s_1000": cpu_s / objects * 1000,
        "port_p50_s": statistics.median(answers),
        "port_p99_s": answers[int(len(answers) * 0.99)],
    }


def verdicts(rows: Sequence[results.Row]) -> list[report.Verdict]:
    """The goals, for each row that they are about."""
    found = []
    for row in rows:
        if row.measure == "port_core_mb_s" and row.image == TITLES[LARGE]:
            goal, least = "large objects, per core: 400 MB/s", GOAL_MB_S
        elif row.measure == "port_core_objects_s" and row.image == TITLES[BATCH]:
            goal, least = "small objects in batches, per core: 5,000/s", GOAL_OBJECTS_S
        else:
            continue
        reached = report.value(row.median, row.unit)
        found.append(report.Verdict(goal, row.system, reached, row.median >= least))
    return found


def family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for parent in found:
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, tasks.read_text().split())
    return found


def processor_s(stat: str) -> float:
    """User and system time in /proc/PID/stat (proc(5); the name may hold blanks)."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


def resident_bytes(status: str) -> int:
    """VmRSS in /proc/PID/status."""
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _await_answer(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            connection = port_client.connection(address, 2)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the port does not answer: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())

"""
The figures of a benchmark: what is measured, how single values become rows,
and what build/bench/results.json holds.

A row is `{measure, image, link, system, median, min, max, n, unit}`.  No I/O
but reading and writing that file; not thread-safe.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

OVERLAY2 = "overlay2"
GEAR = "gear"
"""The system of figures that do not depend on a way of mounting."""


@dataclass(frozen=True)
class Measure:
    """One thing that is measured."""

    name: str
    unit: str
    title: str


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("image_bytes", "B", "image, in layers"),
        Measure("pull_s", "s", "docker pull"),
        Measure("first_run_s", "s", "first run of the task"),
        Measure("pull_run_s", "s", "pull + run, task done"),
        Measure("known_run_s", "s", "first run, start profile known"),
        Measure("known_pull_run_s", "s", "pull + run, profile known"),
        Measure("wire_bytes", "B", "bytes on the wire"),
        Measure("disk_bytes", "B", "bytes on disk"),
        Measure("warm_start_s", "s", "warm start"),
        Measure("warm_read_s", "s", "warm: read every file"),
        Measure("warm_read_cpu_s", "s", "  processor time of read"),
        Measure("warm_stat_s", "s", "warm: stat every file"),
        Measure("warm_stat_cpu_s", "s", "  processor time of stat"),
        Measure("build_mb_s", "MB/s", "gear build"),
        Measure("index_bytes_per_file", "B", "index, bytes a file"),
        Measure("load_s", "s", "docker load"),
        Measure("apply_s", "s", "apply of the index"),
        Measure("commit_s", "s", "docker commit, 10,000 new files"),
        Measure("image_build_s", "s", "docker build, 20 steps"),
        Measure("run_many_s", "s", "100 x docker run, in a row"),
        Measure("run_parallel_s", "s", "20 x docker run, at once"),
        Measure("rm_s", "s", "docker rm of 50"),
        # bench.fleet
        Measure("fleet_reads", "reads", "reads from the store, an object"),
        Measure("fleet_reads_worst", "reads", "  of the object that was read most"),
        Measure("fleet_more_bytes", "B", "  bytes read beyond the quiet run's"),
        Measure("fleet_refused", "requests", "requests to dead nodes, a node"),
        Measure("fleet_rehomed", "%", "copies at homes that move"),
        Measure("fleet_rehomed_bytes", "B", "  their bytes, of the whole image"),
        Measure("fleet_requests_peak", "x mean", "requests, the busiest node"),
        Measure("fleet_sent_peak", "x mean", "bytes sent, the busiest node"),
        Measure("fleet_sent_most_bytes", "B", "  how many those are"),
        Measure("fleet_route_s", "s", "route of one object"),
        Measure("fleet_members_s", "s", "taking up a new list of members"),
        # bench.port
        Measure("port_mb_s", "MB/s", "MB/s"),
        Measure("port_objects_s", "objects/s", "objects a second"),
        Measure("port_p50_s", "s", "  half of the answers within"),
        Measure("port_p99_s", "s", "  99 of 100 answers within"),
        Measure("port_cpu_s_gb", "s", "  server's processor time, a GB"),
        Measure("port_cpu_s_1000", "s", "  server's processor time, 1,000 objects"),
        Measure("port_core_mb_s", "MB/s", "MB/s per core used"),
        Measure("port_core_objects_s", "objects/s", "objects a second per core used"),
        Measure("port_rss_bytes", "B", "server's memory (RSS)"),
    )
}


@dataclass(frozen=True)
class Row:
    """One measure of one image on one system over one link; link `-`: none is involved."""

    measure: str
    image: str
    link: str
    system: str
    median: float
    min: float
    max: float
    n: int
    unit: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a row is about; no two rows of a file share it."""
        return self.measure, self.image, self.link, self.system


class Results:
    """Single values as they are measured; rows in the order of their first value."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str, str, str], list[float]] = {}

    def add(self, measure: str, image: str, link: str, system: str, value: float) -> None:
        """Note one value; *measure* must be one of MEASURES."""
        assert measure in MEASURES, measure
        self._values.setdefault((measure, image, link, system), []).append(value)

    def rows(self) -> list[Row]:
        """Medians of everything so far."""
        return [
            Row(
                *key,
                median=statistics.median(values),
                min=min(values),
                max=max(values),
                n=len(values),
                unit=MEASURES[key[0]].unit,
            )
            for key, values in self._values.items()
        ]


class Figures:
    """Rows, looked up by what they are about."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {row.key: row for row in rows}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def get(self, measure: str, image: str, link: str, system: str) -> Row | None:
        """The row, if it was measured."""
        return self._rows.get((measure, image, link, system))

    def ratio(self, row: Row) -> float | None:
        """The row's median in multiples of overlay2's, which learns nothing; None without one."""
        measure = {"known_run_s": "first_run_s", "known_pull_run_s": "pull_run_s"}.get(row.measure)
        base = self.get(measure or row.measure, row.image, row.link, OVERLAY2)
        return row.median / base.median if base is not None and base.median else None

    def image_bytes(self, image: str) -> float:
        """The size of the image's layers, unpacked; 0 if it is not known."""
        row = self.get("image_bytes", image, "-", OVERLAY2)
        return row.median if row is not None else 0.0


def write(path: Path, rows: Iterable[Row], *, merge: bool) -> None:
    """Write the rows; with *merge*, keep those of the file that are about something else."""
    kept = {row.key: row for row in read(path)} if merge and path.exists() else {}
    kept |= {row.key: row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in kept.values()], indent=1) + "\n")


def read(path: Path) -> list[Row]:
    """The rows of a results file."""
    return [Row(**entry) for entry in json.loads(path.read_text())]

"""
What a node's port has to say in `GET /metrics` besides its requests (`metrics`).

Safe from any thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gear_plugin.errors import GearError

log = logging.getLogger(__name__)


class PortMetrics:
    """Counters in *registry*; *status* asks the client process for its own (`wire`, `status`)."""

    def __init__(self, registry: CollectorRegistry, status: Callable[[], dict[str, Any]]) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.sent_bytes = counter(
            "gear_port_sent_bytes", "Content of objects sent to other nodes.", "call"
        )
        self.sent_objects = counter(
            "gear_port_sent_objects", "Objects sent to other nodes.", "call"
        )
        self.absent_objects = counter(
            "gear_port_absent_objects", "Objects of batches that could not be had."
        )
        self.refused = counter(
            "gear_port_refused", "Requests refused, by why: token, busy.", "reason"
        )
        # There from the start, so that rates are right from the first one on.
        for call in ("download", "batch"):
            self.sent_bytes.labels(call)
            self.sent_objects.labels(call)
        for reason in ("token", "busy"):
            self.refused.labels(reason)
        registry.register(_ClientStatus(status))


class _ClientStatus:
    """The client process's counts; without them but `gear_client_up 0` when it does not answer."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        """Nothing: the client process need not run when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("gear_client_up", "Whether the client process answers.")
        try:
            status = self._status()
        except GearError as error:
            log.warning("metrics without the client's: %s", error)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        cached, fetched = status.get("cached", {}), status.get("fetched", {})
        yield GaugeMetricFamily(
            "gear_cache_objects", "Objects in the public cache.", value=_number(cached, "objects")
        )
        yield GaugeMetricFamily(
            "gear_cache_bytes", "Disk bytes of the public cache.", _number(cached, "size_bytes")
        )
        yield GaugeMetricFamily(
            "gear_cache_limit_bytes", "Its limit; 0: none.", _number(cached, "limit_bytes")
        )
        yield GaugeMetricFamily(
            "gear_images_completing",
            "Images whose missing objects are being fetched in the background.",
            len(status.get("completing", {})),
        )
        yield CounterMetricFamily(
            "gear_fetched_objects", "Objects that came to this node.", _number(fetched, "objects")
        )
        yield CounterMetricFamily(
            "gear_fetch_failures", "Objects that could not be had.", _number(fetched, "failures")
        )
        yield from _sources(fetched.get("sources", {}))


def _sources(sources: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    objects = CounterMetricFamily(
        "gear_source_objects", "Objects that a source gave.", labels=["source"]
    )
    size = CounterMetricFamily("gear_source_bytes", "Bytes that a source gave.", labels=["source"])
    for name, counts in sources.items():
        objects.add_metric([name], _number(counts, "objects"))
        size.add_metric([name], _number(counts, "size_bytes"))
    yield objects
    yield size


def _number(counts: dict[str, Any], key: str) -> float:
    value = counts.get(key, 0)
    return float(value) if isinstance(value, int | float) else 0.0

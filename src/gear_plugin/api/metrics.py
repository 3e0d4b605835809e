"""
What Prometheus may ask :2019 and :2020, and the part of it that every app has.

Names and units are Prometheus' conventions (prometheus.io/docs/practices/naming).
Each app has a registry of its own; nothing is registered globally.
"""

from __future__ import annotations

import time

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 30)
_NO_ROUTE = "none"


def add_metrics(app: Flask) -> CollectorRegistry:
    """
    Serve `GET /metrics` on *app*, with counts of its requests.

    The registry is for what the app has to say besides.  Requests are labelled
    with the route's pattern, never with what is in its place.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]  # each would say when this began
    registry = CollectorRegistry()
    requests = Counter(
        "gear_http_requests",
        "Requests answered, by route and status.",
        ("method", "route", "status"),
        registry=registry,
    )
    durations = Histogram(
        "gear_http_request_duration_seconds",
        "From a request's head to the beginning of its answer.",
        ("method", "route"),
        buckets=_BUCKETS_S,
        registry=registry,
    )

    @app.before_request
    def begin() -> None:
        g.metrics_begun_s = time.monotonic()

    @app.after_request
    def note(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else _NO_ROUTE
        method = request.method if request.url_rule else _NO_ROUTE
        requests.labels(method, route, response.status_code).inc()
        begun_s = g.get("metrics_begun_s")
        if begun_s is not None:  # the door may have refused it before
            durations.labels(method, route).observe(time.monotonic() - begun_s)
        return response

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    return registry


class CheckTimes:
    """How long a manager's checks of nodes take; to be registered where it is shown."""

    def __init__(self) -> None:
        self.histogram = Histogram(
            "gear_manager_check_duration_seconds",
            "From asking a node to its answer, or to giving it up.",
            ("outcome",),
            buckets=_BUCKETS_S,
            registry=None,
        )

    def observe(self, duration_s: float, is_seen: bool) -> None:
        """Note one check."""
        self.histogram.labels("answered" if is_seen else "failed").observe(duration_s)

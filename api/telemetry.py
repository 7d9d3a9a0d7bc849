"""What Prometheus is shown."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Telemetry:
    """The figures of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Gauge("rlhf_jobs", "Jobs by phase", ["phase"], registry=self.registry)
        self.leads = Gauge("rlhf_operator_leads", "1: an operator acts", registry=self.registry)
        self.troubled = Gauge(
            "rlhf_operator_troubled", "1: it does not hear what happens on the cluster", registry=self.registry
        )
        self.requests = Counter(
            "rlhf_requests", "Requests by route and status", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "rlhf_request_seconds",
            "Seconds until a response began",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.reports = Counter("rlhf_reports", "Workers' reports by outcome", ["outcome"], registry=self.registry)
        self.streams = Gauge("rlhf_streams", "Open event streams", registry=self.registry)

    def exposed(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class Counting:
    """Counts and times requests, by the route's pattern: ids would make a series each."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Now, and not at the end, which a stream may reach days later.
                self.telemetry.seconds.labels(_method(scope), _route(scope)).observe(time.perf_counter() - started)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self.telemetry.requests.labels(_method(scope), _route(scope), str(status)).inc()


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "(none)"))


def _method(scope: Scope) -> str:
    known = ("GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS")
    return scope["method"] if scope["method"] in known else "(other)"

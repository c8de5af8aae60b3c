"""What Prometheus reads of a server."""

from __future__ import annotations

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server. Clients are named by a hash of their id.

    Args:
        shadow: whether the server is in shadow mode.
    """

    def __init__(self, shadow: bool) -> None:
        disable_created_metrics()
        self._l1 = self._touched = self._answered = 0.0
        self.registry = CollectorRegistry()
        about: Any = {"registry": self.registry}
        self.requests = Counter("mad_requests", "Requests by protocol and status.", ("protocol", "status"), **about)
        self.queries = Counter("mad_queries", "Images that were charged to a client.", ("client",), **about)
        self.touched = Counter("mad_touched", "Answers that the defense changed, or would have in shadow.", **about)
        self.answered = Counter("mad_answered", "Images that were answered.", **about)
        self.unflagged_answered = Counter(
            "mad_unflagged_answered", "Images that were answered to clients that the defense does not suspect.", **about
        )
        self.unflagged_touched = Counter("mad_unflagged_touched", "Those whose answers it changed.", **about)
        self.flagged = Gauge("mad_flagged_clients", "Clients that the defense holds for thieves.", **about)
        self.l1 = Counter("mad_l1", "Sum of the L1 distances between clean and defended answers.", **about)
        self.latency = Histogram(
            "mad_latency_seconds", "From a request's head to its answer.", ("protocol",), buckets=SECONDS, **about
        )
        self.left = Gauge("mad_budget_left", "Queries that a client has left.", ("client",), **about)
        Gauge("mad_shadow", "1 if answers stay clean.", **about).set(float(shadow))
        Gauge("mad_l1_mean", "Mean L1 distance of all answers.", **about).set_function(lambda: self._share(self._l1))
        share = Gauge("mad_touched_share", "Share of the answers that were changed.", **about)
        share.set_function(lambda: self._share(self._touched))
        ProcessCollector(registry=self.registry)

    def _share(self, of: float) -> float:
        return of / max(1.0, self._answered)

    def count(self, distances: list[float], touched: int, suspect: bool = False) -> None:
        """Count answers by their L1 distances, and how many of them the defense changed.

        Args:
            distances: between the clean and the defended answers.
            touched: how many of the answers were changed.
            suspect: whether the client was flagged before it asked.
        """
        self._answered += len(distances)
        self._l1 += sum(distances)
        self._touched += touched
        self.answered.inc(len(distances))
        self.l1.inc(sum(distances))
        self.touched.inc(touched)
        if not suspect:
            self.unflagged_answered.inc(len(distances))
            self.unflagged_touched.inc(touched)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)

"""What /metrics shows. No label takes a value from outside: outcomes, error kinds and verdicts are enums."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, which nobody asks for

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60)
_LAG_SECONDS = (*_SECONDS, 300, 1800, 7200, 43200, 86400)


class Metrics:
    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.deliveries = Counter(
            "postrider_deliveries", "Recorded delivery results by outcome", ["outcome"], registry=registry
        )
        self.attempts = Counter(
            "postrider_attempts",
            "HTTP attempts by error kind; ok for a success",
            ["result"],
            registry=registry,
        )
        self.attempt_seconds = Histogram(
            "postrider_attempt_duration_seconds",
            "Duration of an attempt",
            buckets=_SECONDS,
            registry=registry,
        )
        self.lag_seconds = Histogram(
            "postrider_delivery_lag_seconds",
            "From the event's id, made just before its commit, to the end of a first successful attempt",
            buckets=_LAG_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("postrider_in_flight", "Requests under way", registry=registry)
        self.queued = Gauge("postrider_queued", "Deliveries in memory waiting for a slot", registry=registry)
        self.backlog = Gauge("postrider_backlog_events", "Events not yet recorded in full", registry=registry)
        self.oldest_due_seconds = Gauge(
            "postrider_oldest_due_age_seconds", "Age of the oldest event in the backlog", registry=registry
        )
        self.listener_up = Gauge("postrider_listener_up", "1 while LISTEN works", registry=registry)
        self.reconnects = Counter("postrider_listener_reconnects", "Listener reconnects", registry=registry)
        self.service_failures = Counter(
            "postrider_service_failures",
            "Services that failed and were restarted",
            ["service"],
            registry=registry,
        )
        self.blocked = Counter(
            "postrider_blocked_addresses",
            "Connections refused by the network policy",
            ["verdict"],
            registry=registry,
        )
        Info("postrider_build", "Version", registry=registry).info({"version": version})

    def outcomes(self) -> dict[str, float]:
        """Recorded delivery results by outcome, since the daemon started."""
        return {
            sample.labels["outcome"]: sample.value
            for family in self.deliveries.collect()
            for sample in family.samples
        }

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

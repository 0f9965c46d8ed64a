"""What /metrics shows. No label takes a value from outside: outcomes, error kinds and verdicts are enums. All
their values are there from the start, so that a rate sees the first of each.

What is named postrider_database_… is of the database as a whole, and every daemon of it says the same.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Info,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client import (
    Counter as PrometheusCounter,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from postrider.domain.model import DeliveryState, EndpointState, ErrorKind
from postrider.edges.addresses import AddressVerdict

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, which nobody asks for

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60)
_OUTCOMES = (
    *(DeliveryState.SUCCEEDED, DeliveryState.RETRYING, DeliveryState.FAILED, DeliveryState.CANCELLED),
    "fenced",
)
_COUNTED = "; as of postrider_database_counted_timestamp_seconds; NaN before"
_LOOKED = "; looked up every 5 s, NaN before"
_LAG_SECONDS = (*_SECONDS, 300, 1800, 7200, 43200, 86400)


class Tally:
    """A counter for the hot path: counts without a lock, since one thread counts."""

    def __init__(
        self, name: str, text: str, label: str, values: Iterable[str], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._label = name, text, label
        self.counts: Counter[str] = Counter(dict.fromkeys(map(str, values), 0))
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for value, count in self.counts.items():
            family.add_metric([value], count)
        yield family


class Durations:
    """A histogram for the hot path: the library's walks over its buckets in Python."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class DatabaseGauges:
    """Of the database as a whole, counted by every daemon now and then."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, label: str, values: Iterable[str]) -> Gauge:
            made = Gauge(f"postrider_database_{name}", text, [label], registry=registry)
            for value in values:
                made.labels(value).set(math.nan)
            return made

        waits = ("waiting", "kept", "retrying")
        self.deliveries = gauge(
            "deliveries",
            "Deliveries with a row that wait for a slot, that are kept for paused or disabled endpoints, and "
            "that are to be retried; each is counted up to 100,000" + _COUNTED,
            "state",
            waits,
        )
        self.oldest_delivery = gauge(
            "oldest_delivery_age_seconds",
            "Age of the oldest event of such deliveries; 0 where there is none" + _COUNTED,
            "state",
            waits,
        )
        self.endpoints = gauge(
            "endpoints",
            "Endpoints by state; active ones that only fail are failing" + _COUNTED,
            "state",
            ("failing", *(each.value for each in EndpointState if each is not EndpointState.DELETED)),
        )
        self.daemons = gauge(
            "daemons",
            "Daemons that live, and that died and are not cleared away" + _LOOKED,
            "state",
            ("alive", "dead"),
        )
        self.set_aside = Gauge(
            "postrider_database_set_aside_rows",
            "Captured rows of which no event is made yet; counting stops at 10,000" + _LOOKED,
            registry=registry,
        )
        self.set_aside.set(math.nan)
        self.partitions_ahead = gauge(
            "partitions_ahead",
            "Days after today for which a table has partitions" + _LOOKED,
            "table",
            ("outbox", "delivery", "attempt"),
        )
        self.counted_at = Gauge(
            "postrider_database_counted_timestamp_seconds",
            "When this daemon counted deliveries and endpoints of the database: every 5 s, less often where "
            "that takes more than 1 % of the time (up to 10 min)",
            registry=registry,
        )
        self.counted_at.set(math.nan)


class Metrics:
    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.deliveries = Tally(
            "postrider_deliveries", "Recorded delivery results by outcome", "outcome", _OUTCOMES, registry
        )
        self.attempts = Tally(
            "postrider_attempts",
            "HTTP attempts by error kind; ok for a success",
            "result",
            ("ok", *ErrorKind),
            registry,
        )
        self.attempt_seconds = Durations(
            "postrider_attempt_duration_seconds", "Duration of an attempt", _SECONDS, registry
        )
        self.lag_seconds = Durations(
            "postrider_delivery_lag_seconds",
            "From the event's id, made just before its commit, to the end of a first successful attempt",
            _LAG_SECONDS,
            registry,
        )
        self.lanes = Gauge(
            "postrider_lanes", "Lanes that do not keep up, by their state", ["state"], registry=registry
        )
        self.in_flight = Gauge("postrider_in_flight", "Requests under way", registry=registry)
        self.queued = Gauge("postrider_queued", "Deliveries in memory waiting for a slot", registry=registry)
        self.backlog = Gauge("postrider_backlog_events", "Events not yet recorded in full", registry=registry)
        self.oldest_due_seconds = Gauge(
            "postrider_oldest_due_age_seconds", "Age of the oldest event in the backlog", registry=registry
        )
        self.listener_up = Gauge("postrider_listener_up", "1 while LISTEN works", registry=registry)
        self.reconnects = PrometheusCounter(
            "postrider_listener_reconnects", "Listener reconnects", registry=registry
        )
        self.service_failures = PrometheusCounter(
            "postrider_service_failures",
            "Services that failed and were restarted",
            ["service"],
            registry=registry,
        )
        self.host_exhausted = PrometheusCounter(
            "postrider_host_exhausted",
            "Deliveries put off because this host had no descriptor, port or memory for a connection",
            registry=registry,
        )
        self.blocked = PrometheusCounter(
            "postrider_blocked_addresses",
            "Connections refused by the network policy",
            ["verdict"],
            registry=registry,
        )
        for verdict in AddressVerdict:
            if verdict is not AddressVerdict.ALLOWED:
                self.blocked.labels(verdict.value)
        self.restart_due = Gauge(
            "postrider_restart_due",
            "1 where the configuration that was reloaded needs a restart to hold in full",
            registry=registry,
        )
        self.database = DatabaseGauges(registry)
        Info("postrider_build", "Version", registry=registry).info({"version": version})

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

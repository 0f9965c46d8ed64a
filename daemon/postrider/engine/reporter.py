"""Tells how the daemon is doing: to `postrider status` by a report in its row, to Prometheus, and to systemd.

It wakes by itself every few seconds.
"""

from dataclasses import dataclass

from postrider.domain.model import EndpointState
from postrider.domain.pacing import TROUBLES
from postrider.domain.status import DaemonReport
from postrider.domain.timeshare import TimeShare
from postrider.edges.clock import Clock
from postrider.edges.metrics import Metrics
from postrider.edges.systemd import Notifier
from postrider.engine.endpoints import EndpointSnapshot
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Ledger
from postrider.store import capture_rejections, daemons, outbox, partitions, totals
from postrider.store.database import Database
from postrider.store.outbox import Backlog
from postrider.store.totals import Totals

REPORT_S = 5.0
"""Between two reports; whoever reads them knows by it which are stale."""


@dataclass(frozen=True, slots=True)
class ReporterTuning:
    interval_s: float = REPORT_S
    backlog_share: float = 0.02
    """Of the time goes into counting the backlog, which beside an old snapshot passes over what was there."""
    backlog_s: float = 60.0
    """It is counted at least so often."""
    totals_share: float = 0.01
    """Of the time goes into counting what the metrics tell of the whole database,"""
    totals_s: float = 600.0
    """and it is done at least so often."""
    totals_timeout_s: float = 5.0
    """Whatever the database is busy with, counting for a metric is not worth more."""


class Reporter:
    def __init__(
        self,
        *,
        database: Database,
        ledger: Ledger,
        lanes: Lanes,
        endpoints: EndpointSnapshot,
        slots: int,
        clock: Clock,
        metrics: Metrics,
        notifier: Notifier,
        tuning: ReporterTuning | None = None,
    ) -> None:
        """`slots`: requests at a time."""
        self._tuning = tuning = tuning or ReporterTuning()
        self._database = database
        self._ledger = ledger
        self._lanes = lanes
        self._endpoints = endpoints
        self._slots = slots
        self._clock = clock
        self._metrics = metrics
        self._notifier = notifier
        self._counts: dict[str, int] = {}
        self._counted_at: float | None = None
        self._backlog = Backlog(0, None)
        self._counts_of_backlog = TimeShare(tuning.backlog_share, tuning.backlog_s)
        self._totals: Totals | None = None
        self._counts_of_totals = TimeShare(tuning.totals_share, tuning.totals_s)
        for state in TROUBLES:
            metrics.lanes.labels(state.value)  # is shown from now on

    def __repr__(self) -> str:
        return f"<Reporter {self._backlog} deliveries={self._counts}>"

    async def run(self) -> None:
        while True:
            await self.run_once()
            await self._clock.sleep(self._tuning.interval_s)

    async def run_once(self) -> DaemonReport:
        backlog = await self._count_backlog()
        age = (self._clock.now() - backlog.oldest).total_seconds() if backlog.oldest else 0.0
        self._metrics.backlog.set(backlog.events)
        self._metrics.oldest_due_seconds.set(max(0.0, age))
        self._metrics.in_flight.set(self._lanes.running)
        self._metrics.queued.set(self._lanes.queued)
        await self._count_totals()
        states = self._lanes.states()
        for state in TROUBLES:
            self._metrics.lanes.labels(state.value).set(states[state])
        self._notifier.status(
            f"{backlog.events} events waiting, oldest {age:.0f} s; {self._lanes.running} in flight"
        )
        report = self._measure()
        async with self._database.connection() as connection:
            await daemons.report(connection, self._ledger.owner, report, self._clock.now())
        return report

    async def _count_backlog(self) -> Backlog:
        started = self._clock.monotonic()
        if self._counts_of_backlog.due(started):
            async with self._database.connection() as connection:
                self._backlog = await outbox.backlog(connection)
            self._counts_of_backlog.spent(started, self._clock.monotonic())
        return self._backlog

    async def _count_totals(self) -> None:
        """Set the gauges of the whole database; ages go on between two counts."""
        gauges = self._metrics.database
        async with self._database.connection() as connection:
            alive = [row.alive for row in await daemons.list_all(connection)]
            days = await partitions.days(connection)
            set_aside = await capture_rejections.count(connection)
        gauges.daemons.labels("alive").set(alive.count(True))
        gauges.daemons.labels("dead").set(alive.count(False))
        for table, days_of in days.items():
            gauges.partitions_ahead.labels(table).set(days_of.ahead)
        gauges.set_aside.set(set_aside)
        started = self._clock.monotonic()
        if self._counts_of_totals.due(started):
            async with self._database.connection() as connection:
                counted = await totals.count(connection, self._tuning.totals_timeout_s)
            self._counts_of_totals.spent(started, self._clock.monotonic())
            if counted is not None:
                self._totals = counted
                gauges.counted_at.set(self._clock.now().timestamp())
                for state in EndpointState:
                    if state is not EndpointState.DELETED:
                        gauges.endpoints.labels(state.value).set(counted.endpoints.get(state.value, 0))
                gauges.endpoints.labels("failing").set(counted.endpoints.get("failing", 0))
        if self._totals is None:
            return
        now = self._clock.now()
        for kind, total in self._totals.deliveries.items():
            age = (now - total.oldest).total_seconds() if total.oldest else 0.0
            gauges.deliveries.labels(kind).set(total.deliveries)
            gauges.oldest_delivery.labels(kind).set(max(0.0, age))

    def _measure(self) -> DaemonReport:
        before, then = self._counts, self._counted_at
        self._counts, self._counted_at = dict(self._metrics.deliveries.counts), self._clock.monotonic()
        window_s = 0.0 if then is None else self._counted_at - then

        def per_s(outcome: str) -> float:
            if window_s <= 0:
                return 0.0
            return round((self._counts.get(outcome, 0) - before.get(outcome, 0)) / window_s, 2)

        return DaemonReport(
            window_s=round(window_s, 3),
            succeeded_per_s=per_s("succeeded"),
            retried_per_s=per_s("retrying"),
            failed_per_s=per_s("failed"),
            in_flight=self._lanes.running,
            slots=self._slots,
            queued=self._lanes.queued,
            lanes=(*self._endpoints.unusable_lanes(), *self._lanes.trouble()),
            unusable=len(self._endpoints.unusable),
        )

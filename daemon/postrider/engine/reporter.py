"""Tells how the daemon is doing: to `postrider status` by a report in its row, to Prometheus, and to systemd.

It wakes by itself every few seconds.
"""

import asyncio

from postrider.domain.model import EndpointState
from postrider.domain.status import DaemonReport
from postrider.domain.timeshare import TimeShare
from postrider.edges.clock import Clock
from postrider.edges.metrics import Metrics
from postrider.edges.systemd import Notifier
from postrider.engine.endpoints import EndpointSnapshot
from postrider.engine.lane import TROUBLES
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Ledger
from postrider.store.captures import Captures
from postrider.store.daemons import Daemons
from postrider.store.outbox import Backlog, Outbox
from postrider.store.partitions import Partitions
from postrider.store.status import Status, Totals

REPORT_S = 5.0
BACKLOG_SHARE = 0.02
"""Of the time goes into counting the backlog, which beside an old snapshot passes over what was there."""
BACKLOG_S = 60.0
"""It is counted at least so often."""
TOTALS_SHARE = 0.01
"""Of the time goes into counting what the metrics tell of the whole database,"""
TOTALS_S = 600.0
"""and it is done at least so often."""


class Reporter:
    def __init__(
        self,
        *,
        outbox: Outbox,
        captures: Captures,
        status: Status,
        partitions: Partitions,
        daemons: Daemons,
        ledger: Ledger,
        lanes: Lanes,
        endpoints: EndpointSnapshot,
        slots: int,
        clock: Clock,
        metrics: Metrics,
        notifier: Notifier,
    ) -> None:
        """`slots`: requests at a time."""
        self._outbox = outbox
        self._captures = captures
        self._status = status
        self._partitions = partitions
        self._daemons = daemons
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
        self._counts_of_backlog = TimeShare(BACKLOG_SHARE, BACKLOG_S)
        self._totals: Totals | None = None
        self._counts_of_totals = TimeShare(TOTALS_SHARE, TOTALS_S)
        for state in TROUBLES:
            metrics.lanes.labels(state)  # is shown from now on

    def __repr__(self) -> str:
        return f"<Reporter {self._backlog}>"

    async def run(self) -> None:
        never = asyncio.Event()
        while True:
            await self.run_once()
            await self._clock.wait(never, REPORT_S)

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
            self._metrics.lanes.labels(state).set(states[state])
        self._notifier.status(
            f"{backlog.events} events waiting, oldest {age:.0f} s; {self._lanes.running} in flight"
        )
        report = self._measure()
        await self._daemons.report(self._ledger.owner, report, self._clock.now())
        return report

    async def _count_backlog(self) -> Backlog:
        started = self._clock.monotonic()
        if self._counts_of_backlog.due(started):
            self._backlog = await self._outbox.backlog()
            self._counts_of_backlog.spent(started, self._clock.monotonic())
        return self._backlog

    async def _count_totals(self) -> None:
        """Set the gauges of the whole database; ages go on between two counts."""
        gauges = self._metrics.database
        alive = [row.alive for row in await self._daemons.list_daemons()]
        gauges.daemons.labels("alive").set(alive.count(True))
        gauges.daemons.labels("dead").set(alive.count(False))
        for table, days in (await self._partitions.days_ahead()).items():
            gauges.partitions_ahead.labels(table).set(days)
        gauges.set_aside.set(await self._captures.count_rejections())
        started = self._clock.monotonic()
        if self._counts_of_totals.due(started):
            totals = await self._status.totals()
            self._counts_of_totals.spent(started, self._clock.monotonic())
            if totals is not None:
                self._totals = totals
                gauges.counted_at.set(self._clock.now().timestamp())
                for state in EndpointState:
                    if state is not EndpointState.DELETED:
                        gauges.endpoints.labels(state.value).set(totals.endpoints.get(state.value, 0))
                gauges.endpoints.labels("failing").set(totals.endpoints.get("failing", 0))
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

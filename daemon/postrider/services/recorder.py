"""From the sender to the database: writes many results in one transaction, and lets go of what is recorded.

Woken by the first result; it lingers a moment for more unless there are many already. While the database
is away results wait here, bounded by what the lanes may hold.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec
import structlog

from postrider.domain.model import (
    Attempt,
    DeliveryState,
    delivery_public_id,
    endpoint_public_id,
    event_public_id,
)
from postrider.domain.policy import Outcome
from postrider.edges.clock import Clock
from postrider.edges.metrics import Metrics
from postrider.services.work import Claim, Job, OpenEvent, Work
from postrider.store.database import DatabaseUnavailable
from postrider.store.deliveries import Deliveries, DeliveryResult

LINGER_S = 0.05
BATCH = 1000

log = structlog.get_logger()


class Entry(msgspec.Struct, frozen=True):
    job: Job
    result: DeliveryResult
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class RecordCounts:
    recorded: int
    fenced: int


class Recorder:
    def __init__(self, *, deliveries: Deliveries, work: Work, clock: Clock, metrics: Metrics) -> None:
        self._deliveries = deliveries
        self._work = work
        self._clock = clock
        self._metrics = metrics
        self._entries: list[Entry] = []
        self._done_events: list[OpenEvent] = []
        self._missing: list[tuple[Claim, int]] = []
        self._wake = asyncio.Event()
        self._many = asyncio.Event()
        self._batch = BATCH
        self.on_waiting: Callable[[int], None] = lambda _endpoint_id: None
        self.on_retrying: Callable[[datetime], None] = lambda _due: None
        self.on_outcome: Callable[[Job, Outcome], None] = lambda _job, _outcome: None

    def __repr__(self) -> str:
        return f"<Recorder {len(self._entries)} to write>"

    @property
    def empty(self) -> bool:
        return not (self._entries or self._done_events or self._missing)

    def put(
        self,
        job: Job,
        state: DeliveryState,
        *,
        due: datetime | None = None,
        reason: str | None = None,
        attempt: Attempt | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        """Queue the next state of a delivery."""
        event = job.opened.event
        result = DeliveryResult(
            event_id=event.id,
            endpoint_id=job.endpoint.id,
            workspace_id=event.workspace_id,
            state=state,
            attempts=job.attempts + (attempt is not None),
            due=due,
            reason=reason,
            attempt=attempt,
            claim_id=job.opened.claim.id if job.first and job.opened.claim is not None else None,
        )
        self._entries.append(Entry(job, result, outcome))
        self._wake.set()
        if len(self._entries) >= BATCH:
            self._many.set()

    def finish_event(self, opened: OpenEvent) -> None:
        """Queue the end of an event that nobody subscribes to, or whose deliveries are all recorded."""
        self._done_events.append(opened)
        self._wake.set()

    def finish_missing(self, claim: Claim, events: int) -> None:
        """Queue the end of so many events of a claim that the outbox does not have."""
        self._missing.append((claim, events))
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            if len(self._entries) < BATCH:
                await self._clock.wait(self._many, LINGER_S)
            await self.run_once()

    async def run_once(self) -> RecordCounts:
        """Write what is queued. If the database fails, all of it stays queued."""
        self._wake.clear()
        self._many.clear()
        entries = self._entries[: self._batch]
        done = list(self._done_events)
        missing = list(self._missing)
        current = [entry for entry in entries if not entry.job.opened.lost]
        try:
            written = await self._write(current, done, missing)
        except BaseException as error:
            self._wake.set()
            if (
                not isinstance(error, Exception)
                or isinstance(error, DatabaseUnavailable)
                or not self._narrow_down(entries, error)
            ):
                raise
            return RecordCounts(0, 0)
        self._batch = min(BATCH, self._batch * 2)
        del (
            self._entries[: len(entries)],
            self._done_events[: len(done)],
            self._missing[: len(missing)],
        )
        if self._entries:
            self._wake.set()
        self._work.settle(entry.job for entry in entries)
        for opened in done:
            self._work.settle_event(opened)
        for claim, events in missing:
            self._work.settle_claim(claim, events)
        for entry in entries:
            self._announce(entry, fenced=(entry.result.event_id, entry.result.endpoint_id) not in written)
        return RecordCounts(len(written), len(entries) - len(written))

    def _narrow_down(self, entries: list[Entry], error: Exception) -> bool:
        """Find the result that can't be written, to be written without what the receiver sent; False if that
        is not the cause."""
        self._batch = max(1, len(entries) // 2)
        if len(entries) > 1:
            return True
        if not entries or entries[0].result.attempt is None:
            return False
        log.error("attempt.unrecorded", **_facts(entries[0]), reason=str(error))
        reason = f"the attempt can't be recorded: {type(error).__name__}"
        result = msgspec.structs.replace(entries[0].result, attempt=None, reason=reason)
        self._entries[0] = msgspec.structs.replace(entries[0], result=result)
        return True

    async def _write(
        self, entries: list[Entry], done: list[OpenEvent], missing: list[tuple[Claim, int]]
    ) -> set[tuple[UUID, int]]:
        first = [entry for entry in entries if entry.job.first]
        again = [entry.result for entry in entries if not entry.job.first]
        ending: Counter[Claim] = Counter()
        for opened, count in Counter(entry.job.opened for entry in first).items():
            assert opened.claim is not None
            ending[opened.claim] += opened.remaining == count
        for opened in done:
            if opened.claim is not None and not opened.lost:
                ending[opened.claim] += 1
        for claim, count in missing:
            ending[claim] += count
        # Of an abandoned claim nothing counts.
        ours = [(claim, count) for claim, count in ending.items() if self._work.holds(claim)]
        finished = [claim.id for claim, count in ours if claim.unsettled <= count]
        if not (first or again or finished):
            return set()
        return await self._deliveries.record(
            self._work.owner,
            first=[entry.result for entry in first],
            again=again,
            held=[claim.id for claim, count in ours if claim.unsettled > count],
            finished=finished,
            now=self._clock.now(),
        )

    def _announce(self, entry: Entry, *, fenced: bool) -> None:
        """Tell those who wait for it, the metrics and the log what became of a delivery."""
        result, job = entry.result, entry.job
        if fenced:
            self._metrics.deliveries.counts["fenced"] += 1
            log.warning("delivery.fenced", **_facts(entry), reason="another daemon owns it by now")
            return
        match result.state:
            case DeliveryState.WAITING:
                self.on_waiting(result.endpoint_id)
                return
            case DeliveryState.RETRYING:
                assert result.due is not None
                self.on_retrying(result.due)
                log.info(
                    "delivery.retrying", **_facts(entry), due=result.due.isoformat(), reason=result.reason
                )
            case DeliveryState.FAILED:
                log.warning("delivery.failed", **_facts(entry), reason=result.reason)
            case DeliveryState.CANCELLED:
                log.info("delivery.cancelled", **_facts(entry), reason=result.reason)
            case _:
                if log.is_enabled_for(logging.DEBUG):
                    log.debug("delivery.succeeded", **_facts(entry))
        self._metrics.deliveries.counts[result.state.value] += 1
        if entry.outcome is not None:
            self.on_outcome(job, entry.outcome)


def _facts(entry: Entry) -> dict[str, object]:
    result = entry.result
    facts: dict[str, object] = {
        "delivery": delivery_public_id(result.event_id, result.endpoint_id),
        "event_id": event_public_id(result.event_id),
        "event_type": entry.job.opened.event.type,
        "endpoint": endpoint_public_id(result.endpoint_id),
        "attempt": result.attempts,
    }
    if result.attempt is not None:
        facts["duration_ms"] = round(result.attempt.result.duration_ms, 1)
    return facts

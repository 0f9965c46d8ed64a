"""From the sender to the database: writes many results in one transaction, and lets go of what is recorded.

Woken by the first result; it lingers a moment for more unless there are many already. While the database
is away results wait here, bounded by what the lanes may hold.
"""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import assert_never
from uuid import UUID

import msgspec
import structlog

from postrider.domain.model import (
    Attempt,
    DeliveryKey,
    DeliveryState,
    Reply,
    delivery_public_id,
    endpoint_public_id,
    event_public_id,
)
from postrider.domain.policy import Outcome
from postrider.edges.clock import Clock
from postrider.edges.metrics import Metrics
from postrider.engine.failures import Failures
from postrider.engine.ledger import Claim, ClaimedEvent, Job, Ledger
from postrider.engine.recorded import Entry, Reader, Recorded
from postrider.engine.signals import Signal
from postrider.store import delivery_results
from postrider.store.database import Database
from postrider.store.delivery_results import UNWRITABLE, DeliveryResult

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RecorderTuning:
    linger_s: float = 0.05
    """How long the first result waits for others."""
    batch: int = 500
    batch_bytes: int = 4 * 1024 * 1024
    """Of what receivers answered, the last result of a batch excepted."""
    congested_from: int = 4000
    """Results that wait to be recorded; with so many, nothing more is claimed: a kill would send it all
    again."""
    full_from_bytes: int = 32 * 1024 * 1024
    """With so much of what receivers answered nothing more is sent."""


@dataclass(frozen=True, slots=True)
class RecordCounts:
    recorded: int
    fenced: int


@dataclass(frozen=True, slots=True)
class Readers:
    """Who reads what was recorded, one message for each batch, and who has to know of a loss."""

    waiting: Reader
    """The scheduler's: what was left waiting, and when the earliest retry is due."""
    outcomes: Reader
    last_deliveries: Reader
    doubt: Signal
    """The database does not know a claim of ours, or counts less than was recorded of it."""

    def tell(self, recorded: Recorded) -> None:
        self.waiting.put(recorded)
        if recorded.attempts:
            self.outcomes.put(recorded)
            self.last_deliveries.put(recorded)


class Recorder:
    def __init__(
        self,
        tuning: RecorderTuning,
        *,
        database: Database,
        ledger: Ledger,
        clock: Clock,
        metrics: Metrics,
        failures: Failures,
        readers: Readers,
    ) -> None:
        self._tuning = tuning
        self._database = database
        self._failures = failures
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._readers = readers
        self._entries: list[Entry] = []
        self._empty: list[tuple[Claim, int]] = []
        """Claims, with how many of their results need not be written."""
        self._wake = Signal()
        self._many = Signal()
        self._batch = tuning.batch
        self._bytes = 0
        self._writing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Recorder {len(self._entries)} to write bytes={self._bytes}>"

    @property
    def empty(self) -> bool:
        return not (self._entries or self._empty)

    @property
    def congested(self) -> bool:
        return len(self._entries) >= self._tuning.congested_from

    @property
    def full(self) -> bool:
        return self._bytes >= self._tuning.full_from_bytes

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
        event, source = job.held.event, job.source
        result = DeliveryResult(
            event_id=event.id,
            endpoint_id=job.endpoint_id,
            workspace_id=event.workspace_id,
            state=state,
            attempts=job.attempts + (attempt is not None),
            due=due,
            reason=reason,
            attempt=attempt,
            claim_id=source.claim.id if source is not None else None,
            bytes=event.data_bytes,
        )
        answered = _answer_bytes(attempt)
        self._entries.append(Entry(job, result, outcome, answered))
        self._bytes += answered
        self._wake.set()
        # What waits in the database is not sent before it is there.
        if len(self._entries) >= self._tuning.batch or (
            state is DeliveryState.WAITING and event.data is None
        ):
            self._many.set()

    def finish_event(self, claimed: ClaimedEvent) -> None:
        """Queue the end of an event that nobody subscribes to."""
        self._ledger.settle_event(claimed, 0)
        self.finish(claimed.claim, 1)

    def finish_recorded(self, claimed: ClaimedEvent, results: int) -> None:
        """Queue the end of so many deliveries of an event that were recorded under an earlier claim."""
        self._ledger.settle_event(claimed, results)
        self.finish(claimed.claim, results)

    def finish(self, claim: Claim, events: int) -> None:
        """Queue the end of so many events, or deliveries, of a claim that need nothing."""
        self._empty.append((claim, events))
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait(self._clock)
            if len(self._entries) < self._tuning.batch:
                await self._many.wait(self._clock, self._tuning.linger_s)
            await self._write_in_full()

    async def _write_in_full(self) -> None:
        """A stop lets a transaction end: whether one that is cut off was committed can't be known."""
        writing = asyncio.ensure_future(self.run_once())
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            if (error := writing.exception()) is not None:
                log.info("recorder.interrupted", reason=str(error))  # what it was about to write stays queued
            raise

    async def run_once(self) -> RecordCounts:
        """Write what is queued. If the database fails, all of it stays queued."""
        async with self._writing:
            return await self._write_batch()

    async def _write_batch(self) -> RecordCounts:
        self._wake.clear()
        self._many.clear()
        entries = self._next_batch()
        empty = list(self._empty)
        current = [entry for entry in entries if not entry.job.lost]
        try:
            written = await self._write(current, empty)
        except BaseException as error:
            self._wake.set()
            if not isinstance(error, UNWRITABLE) or not self._narrow_down(entries, error):
                raise
            return RecordCounts(0, 0)
        self._batch = min(self._tuning.batch, self._batch * 2)
        del self._entries[: len(entries)], self._empty[: len(empty)]
        self._bytes -= sum(entry.bytes for entry in entries)
        if self._entries:
            self._wake.set()
        self._readers.tell(self._conclude(entries, written))
        return RecordCounts(len(written), len(entries) - len(written))

    def _next_batch(self) -> list[Entry]:
        entries = self._entries[: self._batch]
        most = self._tuning.batch_bytes
        if self._bytes <= most:
            return entries
        taken = accumulate((entry.bytes for entry in entries), initial=0)
        return [entry for entry, before in zip(entries, taken, strict=False) if before < most]

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
        self._bytes -= entries[0].bytes
        self._entries[0] = msgspec.structs.replace(entries[0], result=result, bytes=0)
        return True

    async def _write(self, entries: list[Entry], empty: list[tuple[Claim, int]]) -> set[DeliveryKey]:
        first_results: list[DeliveryResult] = []
        later_results: list[DeliveryResult] = []
        sources: list[ClaimedEvent] = []
        results: Counter[Claim] = Counter()
        for entry in entries:
            source = entry.job.source
            if source is None:
                later_results.append(entry.result)
            else:
                first_results.append(entry.result)
                sources.append(source)
                results[source.claim] += 1
        for claim, events in empty:
            if self._ledger.holds(claim):
                results[claim] += events
        if not (results or later_results):
            return set()
        whole = delivery_results.is_one_statement(first_results, later_results)
        async with self._database.connection() if whole else self._database.transaction() as connection:
            written, counted = await delivery_results.record(
                connection,
                self._ledger.owner,
                first_results=first_results,
                later_results=later_results,
                claims=self._ledger.progress(results),
                now=self._clock.now(),
            )
        if self._ledger.settle(results, counted, sources):
            self._readers.doubt.set()
        return written

    def _conclude(self, entries: list[Entry], written: set[DeliveryKey]) -> Recorded:
        """Let go of what was recorded; note in metrics and log what became of each delivery."""
        attempts: list[Entry] = []
        waiting: list[tuple[int, UUID]] = []
        earliest_due: datetime | None = None
        tell_all = log.is_enabled_for(logging.DEBUG)
        counts = self._metrics.deliveries.counts
        for entry in entries:
            result = entry.result
            if entry.job.source is None:
                self._ledger.release(entry.job)
            if result.state is DeliveryState.WAITING:
                waiting.append((result.endpoint_id, result.event_id))
                continue
            if (result.event_id, result.endpoint_id) not in written:
                counts["fenced"] += 1
                log.warning(
                    "delivery.fenced",
                    **_facts(entry),
                    reason="it is not ours any more: rescued, or undone by a crash",
                )
                continue
            counts[result.state.value] += 1
            if result.due is not None and (earliest_due is None or result.due < earliest_due):
                earliest_due = result.due
            if entry.outcome is not None:
                attempts.append(entry)
            if tell_all or result.state is not DeliveryState.SUCCEEDED:
                self._tell(entry)
        return Recorded(self._clock.now(), attempts, waiting, earliest_due)

    def _tell(self, entry: Entry) -> None:
        result = entry.result
        match result.state:
            case DeliveryState.RETRYING:
                assert result.due is not None
                level = self._failures.level(result.endpoint_id, result.state, result.reason or "")
                if log.is_enabled_for(level):
                    due = result.due.isoformat()
                    log.log(level, "delivery.retrying", **_facts(entry), due=due, reason=result.reason)
            case DeliveryState.FAILED:
                level = self._failures.level(result.endpoint_id, result.state, result.reason or "")
                if log.is_enabled_for(level):
                    log.log(level, "delivery.failed", **_facts(entry), reason=result.reason)
            case DeliveryState.CANCELLED:
                log.info("delivery.cancelled", **_facts(entry), reason=result.reason)
            case DeliveryState.SUCCEEDED:
                log.debug("delivery.succeeded", **_facts(entry))
            case DeliveryState.WAITING | DeliveryState.SENDING:  # nothing became of it yet
                pass
            case _:
                assert_never(result.state)


def _answer_bytes(attempt: Attempt | None) -> int:
    if attempt is None or not isinstance(attempt.result, Reply):
        return 0
    return 2 * (len(attempt.result.body) + len(attempt.result.headers))


def _facts(entry: Entry) -> dict[str, object]:
    result = entry.result
    facts: dict[str, object] = {
        "delivery": delivery_public_id(result.event_id, result.endpoint_id),
        "event_id": event_public_id(result.event_id),
        "event_type": entry.job.held.event.type,
        "endpoint": endpoint_public_id(result.endpoint_id),
        "attempt": result.attempts,
    }
    if result.attempt is not None:
        facts["duration_ms"] = round(result.attempt.result.duration_ms, 1)
    return facts

"""From the sender to the database: writes many results in one transaction, and lets go of what is recorded.

Woken by the first result; it lingers a moment for more unless there are many already. While the database
is away results wait here, bounded by what the lanes may hold.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from uuid import UUID

import msgspec
import structlog

from postrider.domain.model import (
    Attempt,
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
from postrider.engine.recorded import Entry, LeftWaiting, Reader, Recorded
from postrider.engine.signals import Signal
from postrider.store.deliveries import UNWRITABLE, ClaimProgress, Deliveries, DeliveryKey, DeliveryResult

LINGER_S = 0.05
BATCH = 500
BATCH_BYTES = 4 * 1024 * 1024
"""Of what receivers answered, the last result of a batch excepted."""
CONGESTED_FROM = 4000
"""Results that wait to be recorded; with so many, nothing more is claimed: a kill would send it all again."""

FULL_FROM_BYTES = 32 * 1024 * 1024
"""With so much of what receivers answered nothing more is sent."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RecordCounts:
    recorded: int
    fenced: int


class Recorder:
    def __init__(
        self,
        *,
        deliveries: Deliveries,
        ledger: Ledger,
        left_waiting: LeftWaiting,
        readers: Sequence[Reader],
        doubt: Signal,
        clock: Clock,
        metrics: Metrics,
        failures: Failures,
    ) -> None:
        """`left_waiting` is the scheduler's, `readers` are others who hear of each batch. `doubt` is set when
        the database does not know a claim of ours, or counts less than was recorded of it."""
        self._readers = (left_waiting, *readers)
        self._doubt = doubt
        self._deliveries = deliveries
        self._failures = failures
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._entries: list[Entry] = []
        self._empty: list[tuple[Claim, int]] = []
        """Claims, with how many of their results need not be written."""
        self._wake = asyncio.Event()
        self._many = asyncio.Event()
        self._batch = BATCH
        self._bytes = 0
        self._writing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Recorder {len(self._entries)} to write>"

    @property
    def empty(self) -> bool:
        return not (self._entries or self._empty)

    @property
    def congested(self) -> bool:
        return len(self._entries) >= CONGESTED_FROM

    @property
    def full(self) -> bool:
        return self._bytes >= FULL_FROM_BYTES

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
        if len(self._entries) >= BATCH or (state is DeliveryState.WAITING and event.data is None):
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
            await self._wake.wait()
            if len(self._entries) < BATCH:
                await self._clock.wait(self._many, LINGER_S)
            # A stop lets a transaction end: whether one that is cut off was committed can't be known.
            await asyncio.shield(self.run_once())

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
        self._batch = min(BATCH, self._batch * 2)
        del self._entries[: len(entries)], self._empty[: len(empty)]
        self._bytes -= sum(entry.bytes for entry in entries)
        if self._entries:
            self._wake.set()
        tell_all = log.is_enabled_for(logging.DEBUG)
        attempts: list[Entry] = []
        waiting: list[tuple[int, UUID]] = []
        earliest_due: datetime | None = None
        for entry in entries:
            result = entry.result
            if entry.job.source is None:
                self._ledger.release(entry.job)
            if result.state is DeliveryState.WAITING:
                waiting.append((result.endpoint_id, result.event_id))
                continue
            if (result.event_id, result.endpoint_id) not in written:
                self._tell_fenced(entry)
                continue
            self._tell(entry, tell_all=tell_all)
            if entry.outcome is not None or result.attempt is not None:
                attempts.append(entry)
            if result.due is not None and (earliest_due is None or result.due < earliest_due):
                earliest_due = result.due
        recorded = Recorded(self._clock.now(), attempts, waiting, earliest_due)
        for reader in self._readers:
            reader.put(recorded)
        return RecordCounts(len(written), len(entries) - len(written))

    def _next_batch(self) -> list[Entry]:
        entries = self._entries[: self._batch]
        if self._bytes <= BATCH_BYTES:
            return entries
        taken = accumulate((entry.bytes for entry in entries), initial=0)
        return [entry for entry, before in zip(entries, taken, strict=False) if before < BATCH_BYTES]

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
        first: list[Entry] = []
        again: list[DeliveryResult] = []
        results: Counter[Claim] = Counter()
        for entry in entries:
            if entry.job.source is None:
                again.append(entry.result)
            else:
                first.append(entry)
                results[entry.job.source.claim] += 1
        for claim, events in empty:
            if self._ledger.holds(claim):
                results[claim] += events
        if not (results or again):
            return set()
        written, counted = await self._deliveries.record(
            self._ledger.owner,
            first=[entry.result for entry in first],
            again=again,
            claims=[
                ClaimProgress(
                    claim.id, claim.recorded, claim.recorded + count, claim.recorded + count == claim.results
                )
                for claim, count in results.items()
            ],
            now=self._clock.now(),
        )
        self._settle(first, results, counted)
        return written

    def _settle(self, first: list[Entry], results: Counter[Claim], counted: set[int]) -> None:
        """Take note of what is recorded; abandon the claims that the database did not count."""
        for claim, count in results.items():
            if claim.id in counted:
                self._ledger.settle(claim, count)
            else:
                self._ledger.abandon(claim)
                self._doubt.set()
        for entry in first:
            source = entry.job.source
            if source is not None and not source.lost:
                self._ledger.settle_event(source, 1)

    def _tell_fenced(self, entry: Entry) -> None:
        self._metrics.deliveries.counts["fenced"] += 1
        log.warning(
            "delivery.fenced",
            **_facts(entry),
            reason="it is not ours any more: rescued, or undone by a crash",
        )

    def _tell(self, entry: Entry, *, tell_all: bool) -> None:
        """Tell the metrics and the log what became of a delivery."""
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
            case _:
                if tell_all:
                    log.debug("delivery.succeeded", **_facts(entry))
        self._metrics.deliveries.counts[result.state.value] += 1


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

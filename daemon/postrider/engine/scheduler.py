"""From the database back to the lanes: retries that are due become waiting, and waiting deliveries go into
their lanes as there is room.

Woken when a retry falls due, when deliveries were left waiting and when a lane that is behind runs low. It
works in small steps, so that a herd of retries and the refill of one lane don't hold up the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from postrider.domain.model import Event, emitted_at_s, endpoint_public_id
from postrider.edges.clock import Clock
from postrider.engine.lane import Lane
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import LANE_BYTES, Ledger, Share
from postrider.engine.recorded import LeftWaiting
from postrider.engine.recorder import Recorder
from postrider.engine.signals import Signal
from postrider.store import endpoint_deliveries
from postrider.store.database import Database
from postrider.store.deliveries import ClaimedDelivery, Deliveries, WaitingWanted
from postrider.store.outbox import Outbox

PROMOTE_BATCH = 1000
PROMOTE_AGAIN_S = 0.1
REFILL_BATCH = 200
"""Deliveries that one lane gets at a time."""
REFILL_LANES = 64
"""Lanes that are refilled by one statement."""
ROOM_POLL_S = 0.05
RESCAN_S = 5.0
"""How often to look for waiting deliveries that nobody announced: another daemon left them."""
RESCAN_BATCH = 500
"""Endpoints with waiting deliveries that one look finds."""
CANCEL_BATCH = 5000
"""Deliveries of a deleted endpoint that one transaction cancels."""
RECONCILE_S = 30.0
"""How often to compare the claimed deliveries in the database with those in memory: a crash of the server may
have undone what we were told was committed."""
_FIRST = -1

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ScheduleCounts:
    promoted: int
    refilled: int
    cancelled: int


class Scheduler:
    def __init__(
        self,
        *,
        deliveries: Deliveries,
        outbox: Outbox,
        database: Database,
        lanes: Lanes,
        ledger: Ledger,
        recorder: Recorder,
        left_waiting: LeftWaiting,
        rescan: Signal,
        doubt: Signal,
        wake: Signal,
        clock: Clock,
    ) -> None:
        """`left_waiting` and the signals set `wake`. `rescan`: there may be waiting deliveries that nobody
        announced; `doubt`: memory and database may differ about our claims."""
        self._deliveries = deliveries
        self._outbox = outbox
        self._database = database
        self._lanes = lanes
        self._ledger = ledger
        self._recorder = recorder
        self._clock = clock
        self._left_waiting = left_waiting
        self._rescan_wanted = rescan
        self._doubt = doubt
        self._wake = wake
        self._rescan_at = 0.0
        self._rescan_after = _FIRST
        self._reconcile_at = clock.monotonic() + RECONCILE_S
        self._next_due: datetime | None = None
        self._short = False
        """A lane could not be refilled for want of memory, or because results wait to be recorded."""
        lanes.on_refill = self._wake.set

    def __repr__(self) -> str:
        return f"<Scheduler next_due={self._next_due}>"

    def _rescan(self) -> None:
        """Look for waiting deliveries now."""
        self._rescan_at = 0.0
        self._rescan_after = _FIRST
        self._wake.set()

    def _read_messages(self) -> None:
        for endpoint_id, (event_id, deliveries) in self._left_waiting.take_waiting().items():
            for _ in range(deliveries):
                self._lanes.recorded_waiting(endpoint_id, event_id)
        due = self._left_waiting.take_due()
        if due is not None and (self._next_due is None or due < self._next_due):
            self._next_due = due

    async def run(self) -> None:
        while True:
            self._wake.clear()
            await self.run_once()
            await self._wake.wait(self._clock, self._seconds_to_next())

    async def run_once(self) -> ScheduleCounts:
        """A step of each kind: find what waits, promote what is due, refill lanes that are behind."""
        try:
            self._read_messages()
            if self._rescan_wanted.take() or self._doubt:
                self._rescan()
            if self._doubt or self._clock.monotonic() >= self._reconcile_at:
                await self._reconcile()
            cancelled = await self._find_waiting()
            promoted = await self._promote()
            refilled = await self._refill()
        except BaseException:
            self._doubt.set()
            raise
        return ScheduleCounts(promoted, refilled, cancelled)

    async def _find_waiting(self) -> int:
        """Mark lanes that have deliveries waiting; cancel those of endpoints that are deleted."""
        if self._clock.monotonic() < self._rescan_at:
            return 0
        if self._rescan_after == _FIRST:
            self._next_due = await self._deliveries.next_due()
        after = self._rescan_after
        found = await self._deliveries.waiting_endpoints(after, RESCAN_BATCH)
        if self._rescan_after == after:  # nobody asked to begin anew meanwhile
            more = len(found) == RESCAN_BATCH
            self._rescan_after = found[-1] if more else _FIRST
            if not more:
                self._rescan_at = self._clock.monotonic() + RESCAN_S
        cancelled = 0
        for endpoint_id in found:
            if not self._lanes.mark_found(endpoint_id):
                count = await self._cancel_left(endpoint_id)
                if count:
                    endpoint = endpoint_public_id(endpoint_id)
                    log.info("deliveries.cancelled", endpoint=endpoint, deliveries=count)
                cancelled += count
        return cancelled

    async def _cancel_left(self, endpoint_id: int) -> int:
        """Cancel what waits for an endpoint if it is deleted."""
        cancelled = 0
        while True:
            async with self._database.transaction() as connection:
                count = await endpoint_deliveries.cancel_left(
                    connection, endpoint_id, self._clock.now(), CANCEL_BATCH
                )
            cancelled += count
            if count < CANCEL_BATCH:
                return cancelled

    async def _promote(self) -> int:
        now = self._clock.now()
        if self._next_due is None or self._next_due > now:
            return 0
        promoted = await self._deliveries.promote_due(now, PROMOTE_BATCH)
        for endpoint_id, event_id in promoted.items():
            if not self._lanes.mark_behind(endpoint_id, event_id):
                self._rescan()
        self._next_due = await self._deliveries.next_due()
        if not promoted:  # others are at it
            soon = now + timedelta(seconds=PROMOTE_AGAIN_S)
            self._next_due = max(self._next_due or soon, soon)
        return len(promoted)

    async def _refill(self) -> int:
        """Claim waiting deliveries of some lanes, and queue them."""
        lanes, more = self._lanes.refillable(REFILL_LANES)
        self._short = self._recorder.congested and bool(lanes)
        if self._short:
            return 0
        refilled = 0
        for share in Share:
            # Asked now: what was refilled before this took its time.
            chosen = [lane for lane in lanes if lane.share is share and self._lanes.room_of(lane) > 0]
            most_bytes = self._ledger.refill_room(share)
            if chosen and most_bytes < 1:
                self._short = True  # asked again soon
            elif chosen:
                refilled += await self._refill_lanes(chosen, most_bytes)
        if more and refilled:
            self._wake.set()
        elif more:
            self._short = True
        return refilled

    async def _refill_lanes(self, lanes: Sequence[Lane], most_bytes: int) -> int:
        owner = self._ledger.owner
        wanted = [
            WaitingWanted(lane.endpoint.id, min(self._lanes.room_of(lane), REFILL_BATCH), lane.floor)
            for lane in lanes
        ]
        backlogs = {lane.endpoint.id: lane.backlog for lane in lanes}
        for lane in lanes:
            self._lanes.mark_caught_up(lane)  # before the claim: what is left waiting during it is not missed
        claimed: list[ClaimedDelivery] | None = None
        try:
            claimed = await self._deliveries.claim_waiting(
                owner, wanted, self._clock.now(), most_bytes=most_bytes, most_bytes_each=LANE_BYTES
            )
        finally:
            for want in wanted:
                floor = _rest_from(want, claimed, most_bytes)
                if floor is not None:
                    taken = sum(each.endpoint_id == want.endpoint_id for each in claimed or ())
                    rest = max(1, backlogs[want.endpoint_id] - taken)
                    self._lanes.mark_behind(want.endpoint_id, floor, rest)
        events = await self._read([each.event_id for each in claimed])
        if self._ledger.owner != owner:
            return 0  # others took us for dead, and take these too
        unwanted = []
        for each in claimed:
            event = events.get(each.event_id) or _gone(each)
            job = self._ledger.take_delivery(event, each.endpoint_id, each.attempts, each.attempt_base)
            target = self._lanes.lane(each.endpoint_id)
            if target is not None and target.open:
                self._lanes.push(target, job)
            else:
                self._ledger.release(job)
                unwanted.append(job.key)
        for lane in lanes:
            self._lanes.give_back(lane)  # it may have turned slow meanwhile
        if unwanted:
            await self._deliveries.release(owner, unwanted)
        return len(claimed)

    async def _read(self, event_ids: Sequence[UUID]) -> dict[UUID, Event]:
        """The events, from memory where they are in it."""
        held = {
            event_id: event for event_id in event_ids if (event := self._ledger.event(event_id)) is not None
        }
        events = {event_id: event for event_id, event in held.items() if event.data is not None}
        missing = list(dict.fromkeys(event_id for event_id in event_ids if event_id not in events))
        if missing:
            events |= {event.id: event for event in await self._outbox.read(missing)}
        return events

    async def _reconcile(self) -> None:
        """Give back deliveries that the database thinks we hold, and we don't: a crash, or an answer that was
        cut off, made the difference."""
        owner = self._ledger.owner
        self._doubt.clear()  # first: a doubt that comes meanwhile is not lost
        stray = await self._deliveries.owned(owner) - self._ledger.delivery_keys()
        if stray:
            await self._deliveries.release(owner, stray)
            log.info("claims.reconciled", deliveries=len(stray))
            self._rescan()
        self._reconcile_at = self._clock.monotonic() + RECONCILE_S

    def _seconds_to_next(self) -> float:
        now = self._clock.monotonic()
        seconds = min(max(0.0, self._rescan_at - now), max(0.0, self._reconcile_at - now))
        if self._short:
            seconds = min(seconds, ROOM_POLL_S)
        if self._next_due is not None:
            seconds = min(seconds, max(0.0, (self._next_due - self._clock.now()).total_seconds()))
        return seconds


def _rest_from(wanted: WaitingWanted, claimed: list[ClaimedDelivery] | None, most_bytes: int) -> UUID | None:
    """From which event on deliveries of a lane may still wait after a claim (None: it failed); None where
    none does."""
    if claimed is None:
        return wanted.floor
    own = [each for each in claimed if each.endpoint_id == wanted.endpoint_id]
    cut = sum(each.bytes for each in claimed) >= most_bytes or sum(each.bytes for each in own) >= LANE_BYTES
    if len(own) < wanted.room and not cut:
        return None
    return own[-1].event_id if own else wanted.floor


def _gone(claimed: ClaimedDelivery) -> Event:
    """What stands for an event whose row is no more: it fails its delivery, with the reason."""
    return Event(
        id=claimed.event_id,
        workspace_id=claimed.workspace_id,
        type="",
        data=None,
        data_bytes=0,
        previous_attributes=None,
        object_type=None,
        object_id=None,
        actor=None,
        related=None,
        occurred_at=datetime.fromtimestamp(emitted_at_s(claimed.event_id), UTC),
        problem="the event is gone: retention removed it",
    )

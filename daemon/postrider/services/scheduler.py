"""From the database back to the lanes: retries that are due become waiting, and waiting deliveries go into
their lanes as there is room.

Woken when a retry falls due, when deliveries were left waiting and when a lane that is behind runs low.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from postrider.domain.model import endpoint_public_id
from postrider.edges.clock import Clock
from postrider.services.lane import Lane
from postrider.services.lanes import Lanes
from postrider.services.work import Job, OpenEvent, Work
from postrider.store.database import DatabaseUnavailable
from postrider.store.deliveries import Deliveries
from postrider.store.endpoints import Endpoints
from postrider.store.outbox import Outbox

PROMOTE_BATCH = 1000
PROMOTE_AGAIN_S = 0.1
REFILL_BATCH = 200
RESCAN_S = 5.0
"""How often to look for waiting deliveries that nobody announced: another daemon left them."""

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
        endpoints: Endpoints,
        lanes: Lanes,
        work: Work,
        clock: Clock,
    ) -> None:
        self._deliveries = deliveries
        self._outbox = outbox
        self._endpoints = endpoints
        self._lanes = lanes
        self._work = work
        self._clock = clock
        self._wake = asyncio.Event()
        self._rescan_at = 0.0
        self._next_due: datetime | None = None
        self._in_doubt = False
        lanes.on_refill = self._wake.set

    def __repr__(self) -> str:
        return f"<Scheduler next_due={self._next_due}>"

    def rescan(self) -> None:
        """Look for waiting deliveries now."""
        self._rescan_at = 0.0
        self._wake.set()

    def waiting(self, endpoint_id: int) -> None:
        """A delivery of this endpoint was left waiting."""
        self._lanes.mark_behind(endpoint_id)
        self._wake.set()

    def retry_at(self, due: datetime) -> None:
        """A retry was recorded."""
        if self._next_due is None or due < self._next_due:
            self._next_due = due
            self._wake.set()

    def doubt(self) -> None:
        """A claim may have been made without our hearing of it: compare before the next one."""
        self._in_doubt = True
        self.rescan()

    async def run(self) -> None:
        while True:
            self._wake.clear()
            await self.run_once()
            await self._clock.wait(self._wake, self._seconds_to_next())

    async def run_once(self) -> ScheduleCounts:
        """Promote what is due, and refill the lanes that are behind."""
        try:
            if self._in_doubt:
                await self._reconcile()
            cancelled = await self._find_waiting()
            promoted = await self._promote()
            refilled = 0
            for lane in self._lanes.behind():
                refilled += await self._refill(lane)
        except DatabaseUnavailable:
            self._in_doubt = True
            raise
        return ScheduleCounts(promoted, refilled, cancelled)

    async def _find_waiting(self) -> int:
        """Mark the lanes that have deliveries waiting; cancel those of endpoints that are deleted."""
        if self._clock.monotonic() < self._rescan_at:
            return 0
        self._rescan_at = self._clock.monotonic() + RESCAN_S
        self._next_due = await self._deliveries.next_due()
        orphans = [
            endpoint_id
            for endpoint_id in await self._deliveries.waiting_endpoints()
            if not self._lanes.mark_behind(endpoint_id)
        ]
        cancelled = 0
        for endpoint_id in orphans:
            count = await self._endpoints.cancel_deleted(endpoint_id, self._clock.now())
            if count:
                log.info("deliveries.cancelled", endpoint=endpoint_public_id(endpoint_id), deliveries=count)
            cancelled += count
        return cancelled

    async def _promote(self) -> int:
        total = 0
        while self._next_due is not None and self._next_due <= self._clock.now():
            soon = self._clock.now() + timedelta(seconds=PROMOTE_AGAIN_S)
            promoted = await self._deliveries.promote_due(self._clock.now(), PROMOTE_BATCH)
            total += sum(promoted.values())
            for endpoint_id in promoted:
                if not self._lanes.mark_behind(endpoint_id):
                    self._rescan_at = 0.0
            self._next_due = await self._deliveries.next_due()
            if not promoted:  # others are at it
                self._next_due = max(self._next_due or soon, soon)
                break
        return total

    async def _refill(self, lane: Lane) -> int:
        """Claim waiting deliveries of a lane, and queue them."""
        if len(lane.queue) > lane.pace.limit:
            return 0
        wanted = self._work.affordable(min(self._lanes.room_of(lane), REFILL_BATCH))
        if wanted < 1:
            return 0  # asked again when a delivery of the lane is done, and at the next rescan
        endpoint, owner = lane.endpoint, self._work.owner
        self._lanes.mark_caught_up(lane)  # before the claim: what is left waiting during it is not missed
        full = True
        try:
            claimed = await self._deliveries.claim_waiting(owner, endpoint.id, wanted, self._clock.now())
            full = len(claimed) == wanted
        finally:
            if full:
                self._lanes.mark_behind(endpoint.id)
        if not claimed:
            return 0
        read = await self._outbox.read([claim.event_id for claim in claimed])
        if self._work.owner != owner:
            return 0  # others took us for dead, and take these too
        self._work.learn_size(read)
        events = {event.id: event for event in read}
        for claim in claimed:
            event = events.get(claim.event_id)
            if event is None:
                self._in_doubt = True  # gives it back; its partition is on its way out
                continue
            job = Job(OpenEvent(event, 1), endpoint, claim.attempts, claim.attempt_base, first=False)
            self._work.hold(job)
            if lane.open and self._lanes.lane(endpoint.id) is lane:
                self._lanes.push(lane, job)
            else:
                self._work.release(job)
                await self._deliveries.release(self._work.owner, [job.key])
        return len(claimed)

    async def _reconcile(self) -> None:
        """Give back deliveries that the database thinks we hold: an answer may have been cut off."""
        stray = await self._deliveries.owned(self._work.owner) - self._work.deliveries.keys()
        if stray:
            await self._deliveries.release(self._work.owner, stray)
            log.info("claims.reconciled", deliveries=len(stray))
        self._in_doubt = False

    def _seconds_to_next(self) -> float:
        rescan = max(0.0, self._rescan_at - self._clock.monotonic())
        if self._next_due is None:
            return rescan
        return min(rescan, max(0.0, (self._next_due - self._clock.now()).total_seconds()))

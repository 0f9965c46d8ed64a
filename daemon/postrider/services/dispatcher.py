"""From the outbox to the lanes: claims a batch of pending events, matches each to its endpoints (fan-out)
and offers the deliveries to their lanes; what a lane can't take goes to the database as waiting.

Woken by the listener, and by room in the lanes; it polls while it is busy, and once a second when idle.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import structlog

from postrider.domain.model import DeliveryState
from postrider.edges.clock import Clock
from postrider.services.lane import Lane
from postrider.services.lanes import Lanes, Offer
from postrider.services.recorder import Recorder
from postrider.services.subscriptions import Subscriptions
from postrider.services.work import Job, OpenEvent, Work
from postrider.store.daemons import Daemons
from postrider.store.deliveries import Deliveries, DeliveryKey
from postrider.store.outbox import ClaimedEvents, Outbox

BATCH = 512
"""Events per claim."""
BUSY_FROM = 32
"""A claim of this many events means that polling finds more than notifications would."""
BUSY_RATE, IDLE_RATE = 1000, 500
"""Events per second from which on notifications cost writers more than they gain, and below which they are
worth it again: NOTIFY holds a lock of the whole cluster through commit."""
WINDOW_S = 0.1
"""Over which the rate is measured."""
BUSY_POLL_S = 0.01
ROOM_POLL_S = 0.05
BACKSTOP_S = (0.01, 0.05, 0.25, 1.0)
"""Waits of an idle dispatcher. A writer that saw the flag `idle` just before it was set sends no
notification, so the first polls come soon; the last one repeats."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DispatchCounts:
    claimed: int
    offered: int
    spilled: int


class Dispatcher:
    def __init__(
        self,
        *,
        outbox: Outbox,
        deliveries: Deliveries,
        daemons: Daemons,
        subscriptions: Subscriptions,
        lanes: Lanes,
        recorder: Recorder,
        work: Work,
        clock: Clock,
    ) -> None:
        self._outbox = outbox
        self._deliveries = deliveries
        self._daemons = daemons
        self._subscriptions = subscriptions
        self._lanes = lanes
        self._recorder = recorder
        self._work = work
        self._clock = clock
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._idle: bool | None = None
        """What writers were told; None while that is unknown."""
        self._in_doubt = False
        self.turned_at = clock.monotonic()
        """When the claim loop turned last; the watchdog and /healthz look at it."""
        lanes.on_room = self._room.set

    def __repr__(self) -> str:
        return f"<Dispatcher {'idle' if self._idle else 'busy'}>"

    def wake(self) -> None:
        self._wake.set()

    def doubt(self) -> None:
        """A claim may have been made without our hearing of it: compare before the next one."""
        self._in_doubt = True
        self._idle = None
        self._wake.set()

    async def run(self) -> None:
        began, seen, empty = self._clock.monotonic(), 0, 0
        while True:
            self.turned_at = self._clock.monotonic()
            self._wake.clear()  # before the claim: a wake-up that comes during it is not lost
            claimed = (await self.run_once()).claimed
            seen, empty = seen + claimed, 0 if claimed else empty + 1
            passed = self._clock.monotonic() - began
            if claimed >= BUSY_FROM:
                await self._set_idle(False)
            elif self._idle is None:
                await self._set_idle(True)
            elif passed >= WINDOW_S:
                await self._set_idle(seen / passed < (BUSY_RATE if self._idle else IDLE_RATE))
            if passed >= WINDOW_S:
                began, seen = self._clock.monotonic(), 0
            if claimed < BUSY_FROM and self._idle:
                await self._clock.wait(self._wake, BACKSTOP_S[min(empty, len(BACKSTOP_S) - 1)])
            elif claimed < BATCH:
                await self._clock.wait(self._wake, BUSY_POLL_S)

    async def run_once(self) -> DispatchCounts:
        """Claim one batch and fan it out, when there is room for it."""
        await self._wait_for_room()
        owner = self._work.owner
        try:
            if self._in_doubt:
                await self._reconcile()
            wanted = self._work.affordable(BATCH)
            claimed = await self._outbox.claim(owner, wanted) if wanted else None
            if claimed is None:
                return DispatchCounts(0, 0, 0)
            recorded = await self._deliveries.recorded(claimed.redo) if claimed.redo else set()
            await self._subscriptions.reach(claimed.version)
        except BaseException:
            self._in_doubt = True
            raise
        if self._work.owner != owner:
            return DispatchCounts(0, 0, 0)  # others took us for dead, and take the claim too
        return await self._take(claimed, recorded)

    async def _take(self, claimed: ClaimedEvents, recorded: set[DeliveryKey]) -> DispatchCounts:
        """Hold what was claimed, and fan it out."""
        count = len(claimed.events) + claimed.missing
        claim = self._work.take(claimed.claim_id, count)
        opened = [self._work.open(event, claim) for event in claimed.events]
        self._work.learn_size(claimed.events)
        if claimed.missing:
            log.error("event.missing", events=claimed.missing, reason="their outbox rows are gone")
            self._recorder.finish_missing(claim, claimed.missing)
        offered = spilled = 0
        try:
            for each in opened:
                to_lanes, to_database = await self._fan_out(each, recorded)
                offered += to_lanes
                spilled += to_database
        except Exception:
            # The rest of them would never be offered. Now the claim is nobody's, and given back.
            self._work.abandon(claim)
            self._in_doubt = True
            raise
        return DispatchCounts(count, offered, spilled)

    async def _fan_out(self, opened: OpenEvent, recorded: set[DeliveryKey]) -> tuple[int, int]:
        """Offer an event's deliveries, less those recorded before; return (to lanes, to the database)."""
        event = opened.event
        endpoints = [
            endpoint
            for endpoint in self._subscriptions.match(event.workspace_id, event.type)
            if (event.id, endpoint.id) not in recorded
        ]
        opened.remaining = len(endpoints)
        if not endpoints:
            self._recorder.finish_event(opened)
            return 0, 0
        taken = 0
        for endpoint in endpoints:
            taken += await self._offer(Job(opened, endpoint, attempts=0, attempt_base=0, first=True))
        return taken, len(endpoints) - taken

    async def _offer(self, job: Job) -> bool:
        policy = self._subscriptions.retry_policy(job.endpoint)
        if policy.delays[0] > 0:
            due = self._clock.now() + timedelta(seconds=policy.delays[0])
            self._recorder.put(job, DeliveryState.RETRYING, due=due)
            return False
        while (offer := self._lanes.offer(job)) is Offer.FULL:
            await self._room_for(self._lanes.lane(job.endpoint.id))
        if offer is Offer.TAKEN:
            return True
        self._recorder.put(job, DeliveryState.WAITING)
        return False

    async def _wait_for_room(self) -> None:
        while self._work.affordable(1) < 1:
            await self._room_for(None)

    async def _room_for(self, lane: Lane | None) -> None:
        """Wait until a lane, or all together, have room; or a moment, since both may change otherwise."""
        self.turned_at = self._clock.monotonic()
        self._room.clear()
        self._lanes.want_room(lane)
        await self._clock.wait(self._room, ROOM_POLL_S)

    async def _reconcile(self) -> None:
        """Give back claims that the database thinks we hold: an answer may have been cut off."""
        stray = await self._outbox.claims(self._work.owner) - self._work.claims.keys()
        if stray:
            events = await self._outbox.release(self._work.owner, stray)
            log.info("claims.reconciled", events=events)
        self._in_doubt = False

    async def _set_idle(self, idle: bool) -> None:
        if self._idle is not idle:
            self._idle = None  # until it is certain
            await self._daemons.set_idle(self._work.owner, idle=idle)
            self._idle = idle

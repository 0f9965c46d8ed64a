"""From the outbox to the lanes: claims a batch of pending events, matches each to its endpoints (fan-out)
and offers the deliveries to their lanes; what a lane can't take goes to the database as waiting.

It waits for a lane only where the daemon as a whole can do no more, or for a moment. An event for very many
endpoints is fanned out bit by bit, between the claims of others.

Woken by the listener, and by room in the lanes; it polls while it is busy, and once a second when idle.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import msgspec
import structlog

from postrider.domain.model import DeliveryState, Endpoint
from postrider.edges.clock import Clock
from postrider.engine.dialect_rules import DialectRules
from postrider.engine.endpoints import EndpointSnapshot
from postrider.engine.lanes import Lanes, Offer
from postrider.engine.ledger import ClaimedEvent, Job, Ledger
from postrider.engine.recorder import Recorder
from postrider.engine.turns import Queue
from postrider.store.daemons import Daemons
from postrider.store.deliveries import Deliveries
from postrider.store.outbox import ClaimedEvents, Outbox

BATCH = 512
"""Events per claim."""
LARGE_FROM = 33
"""Endpoints of an event that is fanned out by and by, behind those for fewer."""
SLICE = 64
"""Deliveries that are offered in a row before other tasks have a turn."""
LARGE_S = 0.01
"""For large fan-outs, between two claims."""
MAX_PARKED = 512
"""Events that may wait for lanes which are full for a moment, while others are claimed."""
MAX_LARGE = 16_384
"""Large fan-outs under way while others are claimed."""
MAX_LOOKED_UP = 50_000
"""Deliveries that were perhaps recorded before, at one look, the first event's excepted."""
BUSY_FROM = 32
"""After a claim of so many events the next look comes soon."""
BUSY_RATE, IDLE_RATE = 1000, 500
"""Events per second from which on notifications cost writers more than they gain, and below which they are
worth it again: NOTIFY holds a lock of the whole cluster through commit."""
RATE_WINDOW_S = 0.3
"""Over which that is measured: after a single burst, notifications are still quicker than polls."""
LOAD_WINDOW_S = 0.1
SATURATED_FROM = 0.6
"""Share of the time that the daemon runs, or waits for a core, when it can't do more."""
LOAD_WINDOWS = 3
"""The busiest of so many counts."""
BUSY_POLL_S = 0.01
"""While polling finds more than notifications would, and while what is claimed waits for lanes."""
RECONCILE_S = 30.0
"""How often to compare the claims in the database with those in memory: a crash of the server may have undone
what we were told was committed."""
BACKSTOP_S = (0.01, 0.05, 0.25, 1.0)
"""Waits of an idle dispatcher. A writer that saw the flag `idle` just before it was set sends no
notification, so the first polls come soon; the last one repeats."""
UNNOTIFIED_S = (0.01, 0.05)
"""The same where writers never notify."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DispatchCounts:
    claimed: int
    offered: int
    spilled: int
    more: bool
    """More events may be there to be claimed at once."""
    held_up: bool
    """There was no room to claim."""


class FanOut(msgspec.Struct, eq=False):
    """An event on its way to the lanes of its endpoints."""

    claimed: ClaimedEvent
    endpoints: Sequence[Endpoint]
    """As they were when it was claimed; all events that match the same ones share the sequence."""
    next: int = 0
    """The first of them that it was not offered to."""
    redo: bool = False
    """Some of its deliveries may be recorded, and are to be looked up before it goes on."""
    recorded: frozenset[int] = frozenset()
    """Endpoints that it was recorded for before."""

    @property
    def workspace_id(self) -> str:
        return self.claimed.held.event.workspace_id

    @property
    def over(self) -> bool:
        return self.next >= len(self.endpoints)


class Progress(msgspec.Struct):
    """Deliveries that went to their lanes, and to the database, in one turn of the fan-outs."""

    to_lanes: int = 0
    to_database: int = 0
    _paused_at: int = 0

    @property
    def any(self) -> bool:
        return self.to_lanes + self.to_database > 0

    async def pause(self) -> None:
        """Let other tasks have a turn, now and then."""
        if self.to_lanes + self.to_database >= self._paused_at + SLICE:
            self._paused_at = self.to_lanes + self.to_database
            await asyncio.sleep(0)


class Dispatcher:
    def __init__(
        self,
        *,
        outbox: Outbox,
        deliveries: Deliveries,
        daemons: Daemons,
        endpoints: EndpointSnapshot,
        rules: DialectRules,
        lanes: Lanes,
        recorder: Recorder,
        ledger: Ledger,
        clock: Clock,
        notify: bool | None,
    ) -> None:
        """`notify`: whether writers shall notify; None: as the database has it."""
        self._outbox = outbox
        self._deliveries = deliveries
        self._daemons = daemons
        self._endpoints = endpoints
        self._rules = rules
        self._lanes = lanes
        self._recorder = recorder
        self._ledger = ledger
        self._clock = clock
        self._wake = asyncio.Event()
        self._idle: bool | None = None
        """What writers were told; None while that is unknown."""
        self._notify = notify
        self._notified = True
        """Whether they heed it."""
        self._in_doubt = False
        self._reconcile_at = clock.monotonic() + RECONCILE_S
        self._small: deque[FanOut] = deque()
        """Not offered yet."""
        self._parked: dict[int, deque[FanOut]] = {}
        """Small ones that wait for the lane of an endpoint, by its id."""
        self._parked_count = 0
        self._large: Queue[FanOut] = Queue()
        self._full: int | None = None
        """An endpoint whose lane was found full at the last turn of the fan-outs."""
        self._loads = deque([1.0] * LOAD_WINDOWS, LOAD_WINDOWS)
        """Shares of the time in which the daemon was busy lately; taken for all of it until measured."""
        self._measured_at, self._measured_busy = clock.monotonic(), clock.busy()
        self.turned_at = clock.monotonic()
        """When the claim loop turned last; the watchdog and /healthz look at it."""
        lanes.on_room = self._wake.set

    def __repr__(self) -> str:
        state = "idle" if self._idle else "saturated" if self._saturated else "busy"
        return f"<Dispatcher {state} parked={self._parked_count} large={len(self._large)}>"

    @property
    def _saturated(self) -> bool:
        """The daemon as a whole is at its limit."""
        return max(self._loads) >= SATURATED_FROM

    @property
    def _under_way(self) -> bool:
        """Some fan-outs are not over."""
        return bool(self._small or self._parked_count or self._large)

    def wake(self) -> None:
        self._wake.set()

    def doubt(self) -> None:
        """Memory and database may differ about our claims: compare them before the next one."""
        self._in_doubt = True
        self._idle = None
        self._outbox.look_at_all()
        self._wake.set()

    def configure(self, notify: bool | None) -> None:
        """Take over what a new configuration says."""
        self._notify = notify
        self._idle = None
        self._wake.set()

    async def run(self) -> None:
        began, seen, empty = self._clock.monotonic(), 0, 0
        self._measured_at, self._measured_busy = began, self._clock.busy()
        while True:
            self.turned_at = self._clock.monotonic()
            self._wake.clear()  # before the claim: a wake-up that comes during it is not lost
            counts = await self.run_once()
            claimed = counts.claimed
            seen, empty = seen + claimed, 0 if claimed else empty + 1
            passed = self._clock.monotonic() - began
            if passed >= RATE_WINDOW_S:
                await self._set_idle(seen / passed < (IDLE_RATE if self._idle is False else BUSY_RATE))
                began, seen = self._clock.monotonic(), 0
            elif self._idle is None:
                await self._set_idle(claimed < BUSY_FROM)
            if counts.held_up or self._under_way:
                continue
            if claimed < BUSY_FROM and self._idle:
                waits = BACKSTOP_S if self._notified else UNNOTIFIED_S
                await self._clock.wait(self._wake, waits[min(empty, len(waits) - 1)])
            elif not counts.more:
                await self._clock.wait(self._wake, BUSY_POLL_S)

    async def run_once(self) -> DispatchCounts:
        """Claim one batch when there is room for it, and go on with the fan-outs under way."""
        self._measure_load()
        may_claim = self._may_claim()
        claimed, more = await self._claim() if may_claim else (0, False)
        progress = await self._advance()
        if (self._under_way or not may_claim) and not (claimed or progress.any):
            await self._room_for_more()
        return DispatchCounts(claimed, progress.to_lanes, progress.to_database, more, not may_claim)

    def _may_claim(self) -> bool:
        return (
            self._ledger.claim_room() > 0
            and not self._recorder.congested
            and len(self._small) + self._parked_count < MAX_PARKED
            and len(self._large) < MAX_LARGE
        )

    async def _claim(self) -> tuple[int, bool]:
        """Claim a batch of events; return (how many there were, whether there may be more)."""
        owner = self._ledger.owner
        try:
            if self._in_doubt or self._clock.monotonic() >= self._reconcile_at:
                await self._reconcile()
            claimed = await self._outbox.claim(owner, BATCH, self._ledger.claim_room())
            if claimed is None:
                return 0, False
            await self._endpoints.reach(claimed.version)
        except BaseException:
            self._in_doubt = True
            raise
        if self._ledger.owner != owner:
            return 0, False  # others took us for dead, and take the claim too
        return self._take(claimed), claimed.more

    def _take(self, claimed: ClaimedEvents) -> int:
        """Hold what was claimed, and begin its fan-out; return how many events that are."""
        endpoints = [self._endpoints.match(each.workspace_id, each.type) for each in claimed.events]
        claim = self._ledger.take_claim(
            claimed.claim_id,
            [(event, len(found)) for event, found in zip(claimed.events, endpoints, strict=True)],
            claimed.missing,
        )
        if claimed.missing:
            log.error("event.missing", events=claimed.missing, reason="their outbox rows are gone")
            self._recorder.finish(claim, claimed.missing)
        redo = set(claimed.redo)
        for event, found in zip(list(claim.events), endpoints, strict=True):
            if not found:
                self._recorder.finish_event(event)
                continue
            fan_out = FanOut(event, found, redo=event.held.event.id in redo)
            if len(found) < LARGE_FROM:
                self._small.append(fan_out)
            else:
                self._large.append(fan_out.workspace_id, fan_out)
        return len(claimed.events) + claimed.missing

    async def _advance(self) -> Progress:
        """Give each small fan-out a turn that can use it, and some of the large ones."""
        self._full = None
        progress = Progress()
        for endpoint_id, parked in list(self._parked.items()):
            while parked and self._go_on(parked[0], progress):
                self._parked_count -= 1
                self._park(parked.popleft())
                await progress.pause()
            if not parked:
                del self._parked[endpoint_id]
        while self._small:
            if self._small[0].redo:
                await self._look_up_recorded(self._small)
            fan_out = self._small.popleft()
            if fan_out.endpoints[fan_out.next].id not in self._parked:
                self._go_on(fan_out, progress)
            self._park(fan_out)
            await progress.pause()
        ends_at = self._clock.monotonic() + LARGE_S
        stuck = 0  # workspaces in a row whose first one goes no further
        # They leave half of the lanes' capacity to others.
        while stuck < self._large.workspaces and not (self._lanes.crowded or self._recorder.congested):
            fan_out = self._large.pop()
            try:
                if fan_out.redo:
                    await self._look_up_recorded([fan_out])
                stuck = 0 if self._go_on(fan_out, progress) else stuck + 1
            finally:
                if not fan_out.over:
                    self._large.append(fan_out.workspace_id, fan_out, first=True)
            await asyncio.sleep(0)
            if self._wake.is_set() or self._clock.monotonic() >= ends_at:
                break
        return progress

    def _park(self, fan_out: FanOut) -> None:
        """Let one that is not over wait for its next lane, behind others that do."""
        if not fan_out.over:
            self._parked.setdefault(fan_out.endpoints[fan_out.next].id, deque()).append(fan_out)
            self._parked_count += 1

    async def _look_up_recorded(self, fan_outs: Iterable[FanOut]) -> None:
        """Find out for which endpoints the first of these, and some more, were recorded before."""
        chosen: list[FanOut] = []
        deliveries = 0
        for fan_out in fan_outs:
            deliveries += len(fan_out.endpoints)
            if chosen and deliveries > MAX_LOOKED_UP:
                break
            if fan_out.redo:
                chosen.append(fan_out)
        keys = await self._deliveries.recorded([each.claimed.held.event.id for each in chosen])
        found: defaultdict[UUID, set[int]] = defaultdict(set)
        for event_id, endpoint_id in keys:
            found[event_id].add(endpoint_id)
        for fan_out in chosen:
            fan_out.redo = False
            fan_out.recorded = frozenset(found[fan_out.claimed.held.event.id])

    def _go_on(self, fan_out: FanOut, progress: Progress) -> bool:
        """Offer an event to some more of its endpoints; return whether it got any further."""
        claimed, endpoints = fan_out.claimed, fan_out.endpoints
        if claimed.lost:
            fan_out.next = len(endpoints)
            return True
        begun_at, skipped = fan_out.next, 0
        end = min(len(endpoints), begun_at + SLICE)
        patient = self._saturated and len(endpoints) < LARGE_FROM
        try:
            while fan_out.next < end:
                endpoint_id = endpoints[fan_out.next].id
                if endpoint_id in fan_out.recorded:
                    skipped += 1
                    fan_out.next += 1
                    continue
                offer = self._offer(claimed, endpoint_id, patient=patient)
                if offer is Offer.FULL:
                    self._full = endpoint_id
                    break
                fan_out.next += 1
                if offer is Offer.TAKEN:
                    progress.to_lanes += 1
                else:
                    progress.to_database += 1
        except Exception:
            # The rest would never be offered. Now the claim is nobody's, and given back.
            self._ledger.abandon(claimed.claim)
            self._in_doubt = True
            raise
        if skipped:
            self._recorder.finish_recorded(claimed, skipped)
        return fan_out.next > begun_at

    def _offer(self, claimed: ClaimedEvent, endpoint_id: int, *, patient: bool) -> Offer:
        job = Job(claimed.held, endpoint_id, source=claimed)
        endpoint = self._lanes.endpoint(endpoint_id)
        if endpoint is None:
            self._recorder.put(job, DeliveryState.CANCELLED, reason="the endpoint was deleted")
            return Offer.SPILLED
        policy = self._rules.retry_policy(endpoint.dialect)
        if policy.delays[0] > 0:
            due = self._clock.now() + timedelta(seconds=policy.delays[0])
            self._recorder.put(job, DeliveryState.RETRYING, due=due)
            return Offer.SPILLED
        if claimed.held.event.data is None:  # too large for a claim: its lane reads it when it has room
            self._lanes.spill(endpoint_id)
            offer = Offer.SPILLED
        else:
            offer = self._lanes.offer(job, patient=patient)
        if offer is Offer.SPILLED:
            self._recorder.put(job, DeliveryState.WAITING)
        return offer

    def _measure_load(self) -> None:
        now, busy = self._clock.monotonic(), self._clock.busy()
        passed = now - self._measured_at
        if passed >= LOAD_WINDOW_S:
            self._loads.append((busy - self._measured_busy) / passed)
            self._measured_at, self._measured_busy = now, busy

    async def _room_for_more(self) -> None:
        """Wait until the lanes have room again, or there is something new; or a moment, since that may change
        otherwise."""
        self.turned_at = self._clock.monotonic()
        self._lanes.want_room(self._full)
        await self._clock.wait(self._wake, BUSY_POLL_S)

    async def _reconcile(self) -> None:
        """Abandon claims of which the database counts less than was recorded, and give back those that we
        don't know: a crash, or an answer that was cut off, made the difference."""
        self._in_doubt = False  # first: a doubt that comes meanwhile is not lost
        known = self._ledger.claims()
        found = await self._outbox.claims(self._ledger.owner)
        undone = self._ledger.abandon_undone(found, known)
        stray = found.keys() - self._ledger.claims().keys()
        if stray:
            events = await self._outbox.release(self._ledger.owner, stray)
            log.info("claims.reconciled", events=events, undone=undone)
            self._outbox.look_at_all()
        if self._idle is not None:
            await self._tell(self._idle)  # another daemon may have changed whether writers notify
        self._reconcile_at = self._clock.monotonic() + RECONCILE_S

    async def _set_idle(self, idle: bool) -> None:
        if self._idle is not idle:
            await self._tell(idle)

    async def _tell(self, idle: bool) -> None:
        self._idle = None  # until it is certain
        notify = self._notify
        notified = await self._daemons.set_idle(self._ledger.owner, idle=idle, notify=notify)
        if notified is not self._notified:
            log.info("notify.changed", notify=notified, configured=notify)
        self._notified = notified
        if notify is self._notify:  # else a new configuration came meanwhile
            self._idle = idle

"""Events on their way to the lanes of their endpoints: each is offered to one lane after the other; what a
lane can't take goes to the database as waiting.

A lane is waited for only where the daemon as a whole can do no more, or for a moment. An event for very many
endpoints is fanned out bit by bit, between the claims of others.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import msgspec

from postrider.domain.model import DeliveryState, Endpoint
from postrider.edges.clock import Clock
from postrider.engine.decisions import Offer
from postrider.engine.dialect_rules import DialectRules
from postrider.engine.lane_keeper import LaneKeeper
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import ClaimedEvent, Job, Ledger
from postrider.engine.recorder import Recorder
from postrider.engine.signals import Signal
from postrider.engine.turns import Queue
from postrider.store import deliveries
from postrider.store.database import Database


@dataclass(frozen=True, slots=True)
class FanOutTuning:
    large_from: int = 33
    """Endpoints of an event that is fanned out by and by, behind those for fewer."""
    slice: int = 64
    """Deliveries that are offered in a row before other tasks have a turn."""
    large_s: float = 0.01
    """For large fan-outs, between two claims."""
    max_looked_up: int = 50_000
    """Deliveries that were perhaps recorded before, at one look, the first event's excepted."""


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

    slice: int
    """Deliveries between two pauses."""
    to_lanes: int = 0
    to_database: int = 0
    _paused_at: int = 0

    @property
    def any(self) -> bool:
        return self.to_lanes + self.to_database > 0

    async def pause(self) -> None:
        """Let other tasks have a turn, now and then."""
        if self.to_lanes + self.to_database >= self._paused_at + self.slice:
            self._paused_at = self.to_lanes + self.to_database
            await asyncio.sleep(0)


class FanOuts:
    """Those under way."""

    def __init__(
        self,
        tuning: FanOutTuning,
        *,
        database: Database,
        rules: DialectRules,
        lanes: Lanes,
        keeper: LaneKeeper,
        recorder: Recorder,
        ledger: Ledger,
        clock: Clock,
        wake: Signal,
        doubt: Signal,
    ) -> None:
        """`wake` interrupts the large ones: there may be something new. `doubt`: a claim was abandoned."""
        self._tuning = tuning
        self._database = database
        self._rules = rules
        self._lanes = lanes
        self._keeper = keeper
        self._recorder = recorder
        self._ledger = ledger
        self._clock = clock
        self._wake = wake
        self._doubt = doubt
        self._small: deque[FanOut] = deque()
        """Not offered yet."""
        self._parked: dict[int, deque[FanOut]] = {}
        """Small ones that wait for the lane of an endpoint, by its id."""
        self._parked_count = 0
        self._large: Queue[FanOut] = Queue()
        self.full: int | None = None
        """An endpoint whose lane was found full at the last turn."""

    def __repr__(self) -> str:
        return f"<FanOuts small={self.small} parked={self._parked_count} large={self.large}>"

    def __bool__(self) -> bool:
        """Whether some are under way."""
        return bool(self._small or self._parked_count or self._large)

    @property
    def small(self) -> int:
        return len(self._small) + self._parked_count

    @property
    def large(self) -> int:
        return len(self._large)

    def add(self, claimed: ClaimedEvent, endpoints: Sequence[Endpoint], *, redo: bool) -> None:
        """Begin with an event; `redo`: some of its deliveries may be recorded already."""
        fan_out = FanOut(claimed, endpoints, redo=redo)
        if len(endpoints) < self._tuning.large_from:
            self._small.append(fan_out)
        else:
            self._large.append(fan_out.workspace_id, fan_out)

    async def advance(self, *, patient: bool) -> Progress:
        """Give each small fan-out a turn that can use it, and some of the large ones.

        `patient`: the daemon as a whole is at its limit, so that a lane is waited for longer.
        """
        self.full = None
        progress = Progress(self._tuning.slice)
        for endpoint_id, parked in list(self._parked.items()):
            while parked and self._go_on(parked[0], progress, patient=patient):
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
                self._go_on(fan_out, progress, patient=patient)
            self._park(fan_out)
            await progress.pause()
        ends_at = self._clock.monotonic() + self._tuning.large_s
        stuck = 0  # workspaces in a row whose first one goes no further
        # They leave half of the lanes' capacity to others.
        while stuck < self._large.workspaces and not (self._lanes.crowded or self._recorder.congested):
            fan_out = self._large.pop()
            try:
                if fan_out.redo:
                    await self._look_up_recorded([fan_out])
                stuck = 0 if self._go_on(fan_out, progress, patient=False) else stuck + 1
            finally:
                if not fan_out.over:
                    self._large.append(fan_out.workspace_id, fan_out, ahead=True)
            await asyncio.sleep(0)
            if self._wake or self._clock.monotonic() >= ends_at:
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
        looked_up = 0
        for fan_out in fan_outs:
            looked_up += len(fan_out.endpoints)
            if chosen and looked_up > self._tuning.max_looked_up:
                break
            if fan_out.redo:
                chosen.append(fan_out)
        async with self._database.connection() as connection:
            keys = await deliveries.recorded(connection, [each.claimed.held.event for each in chosen])
        found: defaultdict[UUID, set[int]] = defaultdict(set)
        for event_id, endpoint_id in keys:
            found[event_id].add(endpoint_id)
        for fan_out in chosen:
            fan_out.redo = False
            fan_out.recorded = frozenset(found[fan_out.claimed.held.event.id])

    def _go_on(self, fan_out: FanOut, progress: Progress, *, patient: bool) -> bool:
        """Offer an event to some more of its endpoints; return whether it got any further."""
        claimed, endpoints = fan_out.claimed, fan_out.endpoints
        if claimed.lost:
            fan_out.next = len(endpoints)
            return True
        begun_at, skipped = fan_out.next, 0
        end = min(len(endpoints), begun_at + self._tuning.slice)
        now, taken = self._clock.monotonic(), 0
        try:
            while fan_out.next < end:
                endpoint_id = endpoints[fan_out.next].id
                if endpoint_id in fan_out.recorded:
                    skipped += 1
                    fan_out.next += 1
                    continue
                offer = self._offer(claimed, endpoint_id, now, patient=patient)
                if offer is Offer.FULL:
                    self.full = endpoint_id
                    break
                fan_out.next += 1
                if offer is Offer.TAKEN:
                    taken += 1
                else:
                    progress.to_database += 1
        except Exception:
            # The rest would never be offered. Now the claim is nobody's, and given back.
            self._ledger.abandon(claimed.claim)
            self._doubt.set()
            raise
        finally:
            if taken:
                progress.to_lanes += taken
                self._keeper.send(taken)
        if skipped:
            self._recorder.finish_recorded(claimed, skipped)
        return fan_out.next > begun_at

    def _offer(self, claimed: ClaimedEvent, endpoint_id: int, now: float, *, patient: bool) -> Offer:
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
            offer = self._lanes.offer(job, now, patient=patient)
        if offer is Offer.SPILLED:
            self._recorder.put(job, DeliveryState.WAITING)
        return offer

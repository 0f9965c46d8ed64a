"""Lanes: the in-memory queues between dispatcher and sender, one per endpoint.

A lane holds what it can send within a moment, while `capacity` lasts: at most half of what is free. One job
for each slot it may always hold, so slow endpoints can't keep others out, and memory is bounded by the
configuration. Lanes with work take turns, workspace by workspace, each lane at its own pace; slow ones
together have a share of the global slots and of the memory, and so do those that never answered yet. What a
lane can't take goes to the database, and is fetched from there as there is room.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from enum import Enum
from uuid import UUID

import structlog

from postrider.domain.model import Endpoint, endpoint_public_id
from postrider.domain.pacing import Pace, PaceState
from postrider.domain.policy import Outcome
from postrider.domain.status import MAX_REPORTED, LaneReport
from postrider.edges.clock import Clock
from postrider.engine.lane import ANY_EVENT, Lane
from postrider.engine.ledger import Job, Ledger
from postrider.engine.loopturn import LoopTurn
from postrider.engine.turns import Queue, Turns

JOBS_PER_SLOT = 8
"""At least so many may queue up for a slot of a lane that is not slow."""
QUEUE_S = 0.25
"""And as many as take so long, going by its latency: a lane that turns slow has little to give back."""
PATIENCE_S = 0.1
"""How old the first job in the queue of a full lane may be."""
CATCH_UP = 1000
"""Deliveries in the database, for which a lane that is behind is waited for if the daemon is at its limit."""
SLOW_AFTER_S = 0.5
"""A request that is under way for so long, or an average above it, makes a lane slow."""
TICK_S = 0.05
MAX_LOOKED_AT = 1000
"""Lanes that are behind, at one look for some to refill."""

log = structlog.get_logger()


class Offer(Enum):
    TAKEN = "taken"
    FULL = "full"  # for a moment, since the daemon as a whole can't do more: it may be offered again
    SPILLED = "spilled"  # to be recorded as waiting


class Lanes:
    """All lanes, and the turn-taking between them."""

    def __init__(
        self,
        *,
        capacity: int,
        concurrency: int,
        endpoint_concurrency: int,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._capacity = capacity
        self._endpoint_concurrency = endpoint_concurrency
        self._ledger = ledger
        self._clock = clock
        self._endpoints: dict[int, Endpoint] = {}
        self._lanes: dict[int, Lane] = {}
        """Of endpoints that had something to send."""
        self._turns = Turns(concurrency)
        self._loop_turn = LoopTurn(clock, self._wake_takers)
        self._idle_takers: deque[asyncio.Future[None]] = deque()
        self._behind: Queue[Lane] = Queue()
        """Open ones with deliveries in the database."""
        self._watched: set[Lane] = set()
        """Lanes with something under way, or with a limit below their window."""
        self._stirred = asyncio.Event()
        self._draining = False
        self.queued = 0
        self._suspect_queued = 0
        """Of these, in lanes that are slow or never answered."""
        self.running = 0
        self.on_room: Callable[[], None] = lambda: None
        """Called once when the room that was asked for has come about."""
        self._room_wanted = False
        self._awaited: int | None = None
        self.on_refill: Callable[[], None] = lambda: None
        """Called when a lane that is behind runs out of jobs."""
        self.on_return: Callable[[Job], None] = lambda _job: None
        """Called for each job that a lane in trouble gives back to the database."""

    def __repr__(self) -> str:
        return f"<Lanes {len(self._lanes)} queued={self.queued}/{self._capacity} running={self.running}>"

    def endpoint(self, endpoint_id: int) -> Endpoint | None:
        """The endpoint as it is now; None if it is deleted."""
        return self._endpoints.get(endpoint_id)

    def lane(self, endpoint_id: int) -> Lane | None:
        """The lane of an endpoint, made when it is first needed; None if there is no such endpoint."""
        endpoint = self._endpoints.get(endpoint_id)
        if endpoint is None:
            return None
        lane = self._lanes.get(endpoint_id)
        if lane is None:
            ceiling = endpoint.concurrency or self._endpoint_concurrency
            lane = self._lanes[endpoint_id] = Lane(
                endpoint, Pace(ceiling, endpoint.rate, self._clock.monotonic())
            )
        return lane

    def room_of(self, lane: Lane) -> int:
        """How many more jobs the lane may hold."""
        pace, queued = lane.pace, len(lane.queue)
        if pace.state is PaceState.BROKEN:
            return min(pace.limit, 1) - queued - len(lane.running)
        if pace.resting(self._clock.monotonic()):
            return -queued
        window = int(pace.window)
        if pace.rate is not None:
            return max(1, min(window, int(pace.rate))) - queued
        if lane.slow:
            return window - queued
        depth = window * JOBS_PER_SLOT
        if pace.latency:
            depth = max(depth, int(window / pace.latency * QUEUE_S))
        used = self.queued if lane.suspect else self.queued - self._suspect_queued
        return max(window, min(depth, (self._capacity - used) // 2)) - queued

    @property
    def crowded(self) -> bool:
        """Lanes that answer have used up half of the capacity."""
        return self.queued - self._suspect_queued > self._capacity // 2

    def want_room(self, endpoint_id: int | None) -> None:
        """Ask for `on_room`: when that lane is half empty, or without one, when all lanes together are."""
        self._room_wanted = True
        self._awaited = endpoint_id

    def refillable(self, most: int) -> tuple[list[Lane], bool]:
        """Some lanes that could do with what waits for them in the database, taking turns as workspaces do;
        and whether there may be more."""
        found: list[Lane] = []
        looked_at: list[Lane] = []
        while self._behind and len(found) < most and len(looked_at) < MAX_LOOKED_AT:
            lane = self._behind.pop()
            looked_at.append(lane)
            # What is on its way to the database may be overtaken rather than that the lane stands still.
            current = not lane.spilled or not lane.queue
            if current and len(lane.queue) <= lane.pace.limit and self.room_of(lane) > 0:
                found.append(lane)
        more = bool(self._behind)
        for lane in looked_at:  # not before: it would come again where its workspace has no other
            self._behind.append(lane.endpoint.workspace_id, lane)
        return found, more

    def trouble(self) -> list[LaneReport]:
        """The open lanes that do not keep up, at most `MAX_REPORTED`, those with most work first."""
        troubled = [lane for lane in self._lanes.values() if lane.open and lane.troubled]
        troubled.sort(key=lambda lane: (lane.behind, len(lane.queue) + len(lane.running)), reverse=True)
        return [lane.report() for lane in troubled[:MAX_REPORTED]]

    def states(self) -> Counter[str]:
        """How many open lanes do not keep up, by their state."""
        return Counter(lane.state for lane in self._lanes.values() if lane.open and lane.troubled)

    def mark_behind(self, endpoint_id: int, event_id: UUID = ANY_EVENT, deliveries: float = math.inf) -> bool:
        """Note that so many more deliveries of an endpoint, of this event or later ones, wait in the
        database; False if there is no such endpoint."""
        lane = self.lane(endpoint_id)
        if lane is None:
            return False
        lane.expect(event_id, deliveries)
        if lane.open and not self._behind.has(lane.endpoint.workspace_id, lane):
            self._behind.append(lane.endpoint.workspace_id, lane)
        return True

    def mark_caught_up(self, lane: Lane) -> None:
        lane.expect_none()
        self._behind.remove(lane.endpoint.workspace_id, lane)

    def recorded_waiting(self, endpoint_id: int, event_id: UUID) -> None:
        """A delivery that was spilled, or given back, is in the database."""
        lane = self._lanes.get(endpoint_id)
        if lane is not None:
            lane.spilled = max(0, lane.spilled - 1)
        self.mark_behind(endpoint_id, event_id, 1)

    def mark_found(self, endpoint_id: int) -> bool:
        """Note that deliveries of an endpoint were found waiting in the database; False if there is no such
        endpoint."""
        lane = self.lane(endpoint_id)
        known = lane is not None and lane.waiting
        return self.mark_behind(endpoint_id, deliveries=0 if known else math.inf)

    def update(self, changed: Iterable[Endpoint], gone: Iterable[int] = ()) -> list[Job]:
        """Take over endpoints that are new or changed, and forget those that are `gone`; return the jobs of
        lanes that closed, to be given back or cancelled."""
        now = self._clock.monotonic()
        returned: list[Job] = []
        for endpoint in changed:
            self._endpoints[endpoint.id] = endpoint
            lane = self._lanes.get(endpoint.id)
            if lane is not None:
                returned += self._change(lane, endpoint, now)
        for endpoint_id in gone:
            self._endpoints.pop(endpoint_id, None)
            lane = self._lanes.get(endpoint_id)
            if lane is not None:
                returned += self._empty(lane)
                self._behind.remove(lane.endpoint.workspace_id, lane)
                if not lane.running:
                    del self._lanes[endpoint_id]
        if self._behind:
            self.on_refill()
        return returned

    def offer(self, job: Job, *, patient: bool) -> Offer:
        """Queue a delivery that comes straight from the outbox, if its lane may take it.

        `patient`: the daemon as a whole is at its limit, so that waiting for a lane keeps nobody waiting.
        Else only a lane that has just become full is worth a moment.
        """
        lane = self.lane(job.endpoint_id)
        assert lane is not None
        if lane.open and self._ledger.admits(lane.share):
            if not lane.behind and self.room_of(lane) > 0:
                self.push(lane, job)
                return Offer.TAKEN
            if self._is_worth_waiting_for(lane, patient=patient):
                return Offer.FULL
        lane.spilled += 1
        return Offer.SPILLED

    def spill(self, endpoint_id: int) -> None:
        """A delivery of this endpoint goes to the database without being offered."""
        lane = self.lane(endpoint_id)
        if lane is not None:
            lane.spilled += 1

    def push(self, lane: Lane, job: Job) -> None:
        job.queued_at = self._clock.monotonic()
        if lane.suspect:
            self._ledger.mark(job, lane.share)
        lane.queue.append(job)
        self._count_queued(lane, 1)
        if len(lane.running) < lane.pace.limit:
            self._turns.give(lane)
            if not self._loop_turn.refusing:
                self._wake_taker()
        elif lane.pace.limit == 0:
            self._watch(lane)

    async def take(self) -> Job | None:
        """The next job whose lane has a free slot, lanes taking turns; None when draining is over."""
        while True:
            while self._loop_turn.admits() and (lane := self._turns.next()) is not None:
                if not lane.ready:
                    continue
                job = lane.queue.popleft()
                job.taken_at = now = self._clock.monotonic()
                lane.running[job] = None
                if len(lane.running) == 1:
                    self._watch(lane)
                lane.pace.started(now)
                self._loop_turn.begin(now)
                self._count_queued(lane, -1)
                self.running += 1
                self._turns.count(lane, 1)
                self._turns.give(lane)
                if self._idle_takers and not self._loop_turn.refusing and self._turns:
                    self._wake_taker()
                return job
            if self._draining:
                return None
            taker = asyncio.get_running_loop().create_future()
            self._idle_takers.append(taker)
            try:
                await taker
            except asyncio.CancelledError:
                if taker.done() and not taker.cancelled():
                    self._wake_taker()
                raise

    def done(self, job: Job, outcome: Outcome | None) -> None:
        """Free the slot of a job that was taken; `outcome` is None where it came to nothing.

        The caller takes again, so no other taker is woken.
        """
        lane = self._lanes[job.endpoint_id]
        full = len(lane.running) >= lane.pace.limit
        del lane.running[job]
        self.running -= 1
        self._turns.count(lane, -1)
        if job.share is not None:
            self._ledger.unmark(job)
        if outcome is not None:
            now = self._clock.monotonic()
            before = lane.pace.state
            lane.pace.ended(outcome, job.taken_at, now, full=full)
            if lane.pace.state is not before:
                self._announce(lane)
            if lane.suspect:
                self._classify(lane, now)
            if lane.queue and lane.pace.resting(now):
                self.give_back(lane)
        self._turns.give(lane)
        if self._room_wanted and self._has_room(lane):
            self._room_wanted = False
            self.on_room()
        if lane.waiting and len(lane.queue) <= lane.pace.limit:
            self.on_refill()
        if not lane.running and job.endpoint_id not in self._endpoints:
            del self._lanes[job.endpoint_id]

    async def run(self) -> None:
        """Look after the lanes that need it."""
        while True:
            await self._clock.wait(self._stirred, None)
            await self._clock.wait(asyncio.Event(), TICK_S)
            self.tick()

    def tick(self) -> None:
        """Find out which lanes are slow, and end the rests that are over."""
        now = self._clock.monotonic()
        for lane in list(self._watched):
            self._classify(lane, now)
            before = lane.pace.state
            lane.pace.refresh(now)
            if lane.pace.state is not before:
                self._announce(lane)
            self._turns.give(lane)
            if lane.waiting and self.room_of(lane) > 0:
                self.on_refill()
            if not lane.running and lane.pace.limit and lane.pace.state is not PaceState.THROTTLED:
                self._watched.discard(lane)
        if self._turns:
            self._wake_taker()
        if not self._watched:
            self._stirred.clear()

    def clear(self) -> None:
        """Forget what is queued."""
        for lane in self._lanes.values():
            self._empty(lane)
            lane.spilled = 0

    def close(self) -> None:
        """Forget what is queued; takers end when they have done what they took."""
        self._draining = True
        self.clear()
        while self._idle_takers:
            self._wake_taker()

    def _change(self, lane: Lane, endpoint: Endpoint, now: float) -> list[Job]:
        """Take over a changed endpoint; return the jobs of its lane if it closed."""
        self._turns.withdraw(lane)
        self._behind.remove(lane.endpoint.workspace_id, lane)
        before = lane.endpoint
        lane.take_over(endpoint)
        reopened = endpoint.open and not before.open
        ceiling = endpoint.concurrency or self._endpoint_concurrency
        if reopened or endpoint.url != before.url:
            lane.pace = Pace(ceiling, endpoint.rate, now)
            self._set_class(lane, suspect=True, slow=False, failing=False)
        else:
            lane.pace.configure(ceiling, endpoint.rate, now)
        if reopened:
            self.mark_behind(endpoint.id)
        elif lane.waiting and lane.open:
            self._behind.append(endpoint.workspace_id, lane)
        returned: list[Job] = []
        if not lane.open:
            returned = self._empty(lane)
            lane.spilled += len(returned)
        self._turns.give(lane)
        self._wake_taker()
        return returned

    def _classify(self, lane: Lane, now: float) -> None:
        oldest = next(iter(lane.running), None)
        age = now - oldest.taken_at if oldest is not None else 0.0
        # Twice as fast again before it counts as fast: no flapping.
        bound = SLOW_AFTER_S / 2 if lane.slow else SLOW_AFTER_S
        was_slow, slow = lane.slow, max(age, lane.pace.latency) > bound
        suspect = slow or not lane.pace.answered
        self._set_class(lane, suspect=suspect, slow=slow, failing=lane.failing and suspect)
        if slow is was_slow:
            return
        endpoint = endpoint_public_id(lane.endpoint.id)
        latency_ms = round(max(age, lane.pace.latency) * 1000)
        if slow:
            if lane.pace.state is not PaceState.BROKEN:  # which was told
                log.info("lane.slow", endpoint=endpoint, latency_ms=latency_ms)
            self.give_back(lane)
        elif lane.pace.state is not PaceState.BROKEN:
            log.info("lane.fast", endpoint=endpoint, latency_ms=latency_ms)

    def _set_class(self, lane: Lane, *, suspect: bool, slow: bool, failing: bool) -> None:
        before = lane.share
        lane.slow = slow
        if (suspect, failing) != (lane.suspect, lane.failing):
            self._count_queued(lane, -len(lane.queue))
            self._turns.reclassify(lane, suspect=suspect, failing=failing)
            self._count_queued(lane, len(lane.queue))
        if lane.share is not before:
            for jobs in (lane.running, lane.queue):
                for job in jobs:
                    self._ledger.mark(job, lane.share)

    def _announce(self, lane: Lane) -> None:
        """Tell of a new state of a lane's pace; a lane that rests keeps nothing in memory."""
        pace = lane.pace
        now = self._clock.monotonic()
        facts: dict[str, object] = {
            "endpoint": endpoint_public_id(lane.endpoint.id),
            "concurrency": int(pace.window),
        }
        if pace.resting(now):
            facts["pause_s"] = round(pace.resume_at - now, 1)
        match pace.state:
            case PaceState.BROKEN:
                log.warning("lane.broken", **facts, reason=pace.reason)
            case PaceState.THROTTLED:
                log.info("lane.throttled", **facts, reason=pace.reason)
            case PaceState.RECOVERING:
                log.info("lane.recovering", **facts)
            case PaceState.OPEN:
                log.info("lane.recovered", **facts)
        self.give_back(lane)
        self._watch(lane)

    def give_back(self, lane: Lane) -> None:
        """Return to the database what a lane in trouble has too much of."""
        excess = max(0, -self.room_of(lane))
        while lane.queue and (excess > 0 or not self._ledger.admits(lane.share)):
            excess -= 1
            job = lane.queue.pop()
            self._count_queued(lane, -1)
            self._ledger.unmark(job)
            lane.spilled += 1
            self.on_return(job)

    def _is_worth_waiting_for(self, lane: Lane, *, patient: bool) -> bool:
        """Whether a lane that takes nothing now will do so in a moment."""
        if lane.slow or lane.pace.rate is not None or lane.pace.state is PaceState.BROKEN:
            return False
        if not lane.pace.limit:
            return False
        if lane.behind and (not patient or lane.backlog + lane.spilled > CATCH_UP):
            return False
        if lane.ready and not lane.suspect:  # it waits for the daemon, not for its receiver
            return True
        age = self._clock.monotonic() - lane.queue[0].queued_at if lane.queue else 0.0
        return age <= (SLOW_AFTER_S if patient else PATIENCE_S)

    def _has_room(self, lane: Lane) -> bool:
        """Whether this lane, of which a request ended, makes the room that was asked for."""
        if self._awaited is None:
            return not self.crowded
        return lane.endpoint.id == self._awaited and self.room_of(lane) >= len(lane.queue)

    def _empty(self, lane: Lane) -> list[Job]:
        jobs = list(lane.queue)
        lane.queue.clear()
        self._count_queued(lane, -len(jobs))
        for job in jobs:
            self._ledger.unmark(job)
        return jobs

    def _count_queued(self, lane: Lane, jobs: int) -> None:
        self.queued += jobs
        if lane.suspect:
            self._suspect_queued += jobs

    def _watch(self, lane: Lane) -> None:
        self._watched.add(lane)
        self._stirred.set()

    def _wake_takers(self, most: int) -> bool:
        """Wake up to so many, if there is something to take; return whether there are others."""
        if not self._turns:
            return False
        for _ in range(min(most, len(self._idle_takers))):
            self._wake_taker()
        return bool(self._idle_takers)

    def _wake_taker(self) -> None:
        while self._idle_takers:
            taker = self._idle_takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return

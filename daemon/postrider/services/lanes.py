"""Lanes: the in-memory queues between dispatcher and sender, one per endpoint.

A lane holds a few jobs for each of its slots while `capacity` lasts: at most half of what is free. One job
for each slot it may always hold, so slow endpoints can't keep others out, and memory is bounded by the
configuration. Lanes with work take turns, each at its own pace; slow ones together have a share of the
global slots, and so do those that never answered yet. What a lane can't take stays in the database.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from enum import Enum

import structlog

from postrider.domain.model import Endpoint, endpoint_public_id
from postrider.domain.pacing import Pace, PaceState
from postrider.domain.policy import Outcome
from postrider.domain.status import MAX_REPORTED, LaneReport
from postrider.edges.clock import Clock
from postrider.services.lane import Lane
from postrider.services.work import Job

JOBS_PER_SLOT = 8
"""Enough to keep a slot busy until more arrive; so few that a full lane that is fast drains at once."""
SLOW_AFTER_S = 0.5
"""A request that is under way for so long, or an average above it, makes a lane slow."""
SUSPECT_SHARE = 0.5
"""Of the global slots, for all lanes together that are slow or did not answer yet."""
TICK_S = 0.05

log = structlog.get_logger()


class Offer(Enum):
    TAKEN = "taken"
    FULL = "full"  # but moving: worth waiting for
    SLOW = "slow"  # full or resting, and it may take long
    CLOSED = "closed"  # paused, disabled, deleted or unusable
    BEHIND = "behind"  # older deliveries of the lane wait in the database


class Lanes:
    """All lanes, and the turn-taking between them."""

    def __init__(self, *, capacity: int, concurrency: int, endpoint_concurrency: int, clock: Clock) -> None:
        self._capacity = capacity
        self._suspect_slots = max(1, int(concurrency * SUSPECT_SHARE))
        self._endpoint_concurrency = endpoint_concurrency
        self._clock = clock
        self._lanes: dict[int, Lane] = {}
        self._turns: deque[Lane] = deque()
        self._suspect_turns: deque[Lane] = deque()
        self._suspect_running = 0
        self._idle_takers: deque[asyncio.Future[None]] = deque()
        self._behind: set[Lane] = set()
        self._watched: set[Lane] = set()
        """Lanes with something under way, or with a limit below their window."""
        self._stirred = asyncio.Event()
        self._draining = False
        self.queued = 0
        self.running = 0
        self.on_room: Callable[[], None] = lambda: None
        """Called once when the room that was asked for has come about."""
        self._room_wanted = False
        self._awaited: Lane | None = None
        self.on_refill: Callable[[], None] = lambda: None
        """Called when a lane that is behind runs out of jobs."""
        self.on_return: Callable[[Job], None] = lambda _job: None
        """Called for each job that a lane in trouble gives back to the database."""

    def __repr__(self) -> str:
        return f"<Lanes {len(self._lanes)} queued={self.queued}/{self._capacity} running={self.running}>"

    def lane(self, endpoint_id: int) -> Lane | None:
        return self._lanes.get(endpoint_id)

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
        share = min(window * JOBS_PER_SLOT, (self._capacity - self.queued) // 2)
        return max(window, share) - queued

    def want_room(self, lane: Lane | None = None) -> None:
        """Ask for `on_room`: when the lane is half empty, or without one, when all lanes together are."""
        self._awaited = lane
        self._room_wanted = True

    def behind(self) -> list[Lane]:
        """Open lanes with deliveries waiting in the database."""
        return [lane for lane in self._behind if lane.open]

    def trouble(self) -> list[LaneReport]:
        """The open lanes that do not keep up, at most `MAX_REPORTED`, those with most work first."""
        troubled = [lane for lane in self._lanes.values() if lane.open and lane.troubled]
        troubled.sort(key=lambda lane: (lane.behind, len(lane.queue) + len(lane.running)), reverse=True)
        return [lane.report() for lane in troubled[:MAX_REPORTED]]

    def states(self) -> Counter[str]:
        """How many open lanes do not keep up, by their state."""
        return Counter(lane.state for lane in self._lanes.values() if lane.open and lane.troubled)

    def mark_behind(self, endpoint_id: int) -> bool:
        """Note that deliveries of an endpoint wait in the database; False if there is no such lane."""
        lane = self._lanes.get(endpoint_id)
        if lane is None:
            return False
        lane.behind = True
        self._behind.add(lane)
        return True

    def mark_caught_up(self, lane: Lane) -> None:
        lane.behind = False
        self._behind.discard(lane)

    def update(self, changed: Iterable[Endpoint], gone: Iterable[int] = ()) -> list[Job]:
        """Take over endpoints that changed, and forget those that are gone; return the jobs of lanes that
        closed, to be given back."""
        now = self._clock.monotonic()
        returned: list[Job] = []
        for endpoint in changed:
            lane = self._lanes.get(endpoint.id)
            ceiling = endpoint.concurrency or self._endpoint_concurrency
            if lane is None:
                self._lanes[endpoint.id] = Lane(endpoint, Pace(ceiling, endpoint.rate, now))
                continue
            reopened = not lane.open and endpoint.open
            if reopened or endpoint.url != lane.endpoint.url:
                lane.pace = Pace(ceiling, endpoint.rate, now)
            else:
                lane.pace.configure(ceiling, endpoint.rate, now)
            lane.endpoint = endpoint
            for job in lane.queue:
                job.endpoint = endpoint
            if reopened:
                self.mark_behind(endpoint.id)
            if not lane.open:
                returned += self._empty(lane)
            self._give_turn(lane)
            self._wake_taker()
        if self._behind:
            self.on_refill()
        for endpoint_id in gone:
            lane = self._lanes.pop(endpoint_id, None)
            if lane is not None:
                self._behind.discard(lane)
                returned += self._empty(lane)
        return returned

    def offer(self, job: Job) -> Offer:
        """Queue a delivery that comes straight from the outbox, if its lane may take it."""
        lane = self._lanes.get(job.endpoint.id)
        if lane is None or not lane.open:
            return Offer.CLOSED
        if lane.behind:
            return Offer.BEHIND
        if self.room_of(lane) <= 0:
            return Offer.SLOW if self._keeps_waiting(lane) else Offer.FULL
        self.push(lane, job)
        return Offer.TAKEN

    def push(self, lane: Lane, job: Job) -> None:
        job.queued_at = self._clock.monotonic()
        job.lane = lane
        lane.queue.append(job)
        self.queued += 1
        if len(lane.running) < lane.pace.limit:
            self._give_turn(lane)
            self._wake_taker()
        elif lane.pace.limit == 0:
            self._watch(lane)

    async def take(self) -> Job | None:
        """The next job whose lane has a free slot, lanes taking turns; None when draining is over."""
        while True:
            while (lane := self._next_lane()) is not None:
                if not lane.ready:
                    continue
                job = lane.queue.popleft()
                job.taken_at = now = self._clock.monotonic()
                lane.running[job] = None
                if len(lane.running) == 1:
                    self._watch(lane)
                lane.pace.started(now)
                self.queued -= 1
                self.running += 1
                self._suspect_running += lane.suspect
                self._give_turn(lane)
                if self._idle_takers and self._any_turn():
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
        lane = job.lane
        assert lane is not None
        full = len(lane.running) >= lane.pace.limit
        del lane.running[job]
        self.running -= 1
        self._suspect_running -= lane.suspect
        if outcome is not None:
            now = self._clock.monotonic()
            before = lane.pace.state
            lane.pace.ended(outcome, job.taken_at, now, full=full)
            if lane.pace.state is not before:
                self._announce(lane)
            if lane.suspect:
                self._classify(lane, now)
            if lane.queue and lane.pace.resting(now):
                self._give_back(lane)
        self._give_turn(lane)
        if self._room_wanted and self._has_room():
            self._room_wanted = False
            self.on_room()
        if lane.behind and len(lane.queue) <= lane.pace.limit:
            self.on_refill()

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
            self._give_turn(lane)
            if lane.behind and self.room_of(lane) > 0:
                self.on_refill()
            if not lane.running and lane.pace.limit and lane.pace.state is not PaceState.THROTTLED:
                self._watched.discard(lane)
        if self._any_turn():
            self._wake_taker()
        if not self._watched:
            self._stirred.clear()

    def clear(self) -> None:
        """Forget what is queued."""
        for lane in self._lanes.values():
            self._empty(lane)

    def close(self) -> None:
        """Forget what is queued; takers end when they have done what they took."""
        self._draining = True
        self.clear()
        while self._idle_takers:
            self._wake_taker()

    def _classify(self, lane: Lane, now: float) -> None:
        oldest = next(iter(lane.running), None)
        age = now - oldest.taken_at if oldest is not None else 0.0
        # Twice as fast again before it counts as fast: no flapping.
        bound = SLOW_AFTER_S / 2 if lane.slow else SLOW_AFTER_S
        slow = max(age, lane.pace.latency) > bound
        suspect = slow or not lane.pace.latency
        if suspect is not lane.suspect:
            if lane.has_turn:
                (self._suspect_turns if lane.suspect else self._turns).remove(lane)
                lane.has_turn = False
            lane.suspect = suspect
            self._suspect_running += len(lane.running) if suspect else -len(lane.running)
            self._give_turn(lane)
        if slow is lane.slow:
            return
        lane.slow = slow
        endpoint = endpoint_public_id(lane.endpoint.id)
        latency_ms = round(max(age, lane.pace.latency) * 1000)
        if slow:
            if lane.pace.state is not PaceState.BROKEN:  # which was told
                log.info("lane.slow", endpoint=endpoint, latency_ms=latency_ms)
            self._give_back(lane)
        elif lane.pace.state is not PaceState.BROKEN:
            log.info("lane.fast", endpoint=endpoint, latency_ms=latency_ms)

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
        self._give_back(lane)
        self._watch(lane)

    def _give_back(self, lane: Lane) -> None:
        """Return to the database what a lane in trouble has too much of."""
        excess = max(0, -self.room_of(lane))
        for _ in range(min(excess, len(lane.queue))):
            job = lane.queue.pop()
            self.queued -= 1
            self.on_return(job)

    def _keeps_waiting(self, lane: Lane) -> bool:
        if lane.slow or lane.pace.state is PaceState.BROKEN or not lane.pace.limit:
            return True
        # Where the daemon is the bottleneck, a lane has slots to spare, and drains in its turn.
        kept = len(lane.running) >= lane.pace.limit or (
            lane.suspect and self._suspect_running >= self._suspect_slots
        )
        return kept and self._clock.monotonic() - lane.queue[0].queued_at > SLOW_AFTER_S

    def _empty(self, lane: Lane) -> list[Job]:
        jobs = list(lane.queue)
        lane.queue.clear()
        self.queued -= len(jobs)
        return jobs

    def _has_room(self) -> bool:
        lane = self._awaited
        if lane is None:
            return self.queued <= self._capacity // 2
        return len(lane.queue) <= int(lane.pace.window) * JOBS_PER_SLOT // 2

    def _watch(self, lane: Lane) -> None:
        self._watched.add(lane)
        self._stirred.set()

    def _any_turn(self) -> bool:
        return bool(self._turns) or (
            bool(self._suspect_turns) and self._suspect_running < self._suspect_slots
        )

    def _next_lane(self) -> Lane | None:
        # First, since their share is bounded, and behind busy lanes they might never have a turn.
        if self._suspect_turns and self._suspect_running < self._suspect_slots:
            lane = self._suspect_turns.popleft()
        elif self._turns:
            lane = self._turns.popleft()
        else:
            return None
        lane.has_turn = False
        return lane

    def _give_turn(self, lane: Lane) -> None:
        if not lane.has_turn and lane.ready:
            lane.has_turn = True
            (self._suspect_turns if lane.suspect else self._turns).append(lane)

    def _wake_taker(self) -> None:
        while self._idle_takers:
            taker = self._idle_takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return

"""Lanes: the in-memory queues between dispatcher and sender, one per endpoint.

A lane holds a few jobs for each of its slots while `capacity` lasts: at most half of what is free. One job
for each slot it may always hold, so slow endpoints can't keep others out, and memory is bounded by the
configuration. A lane has its own concurrency, and lanes with work take turns. What a lane can't take stays
in the database.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum

from postrider.domain.model import Endpoint, EndpointState
from postrider.domain.status import LaneReport
from postrider.services.work import Job

JOBS_PER_SLOT = 8
"""Enough to keep a slot busy until more arrive; so few that a full lane that is fast drains at once."""
SLOW_AFTER_S = 0.5
"""A full lane whose head has waited this long is slow: the database holds what comes for it. Until then
it pays to let it drain, since a place in memory costs nothing and a place in the database three writes."""
MAX_REPORTED = 50


class Offer(Enum):
    TAKEN = "taken"
    FULL = "full"  # but moving: worth waiting for
    SLOW = "slow"  # full, and its head has waited long
    CLOSED = "closed"  # paused, disabled or deleted
    BEHIND = "behind"  # older deliveries of the lane wait in the database


class Lane:
    __slots__ = ("behind", "endpoint", "has_turn", "limit", "queue", "running")

    def __init__(self, endpoint: Endpoint, limit: int) -> None:
        self.endpoint = endpoint
        self.limit = limit
        self.queue: deque[Job] = deque()
        self.running = 0
        self.has_turn = False
        self.behind = False

    def __repr__(self) -> str:
        return (
            f"<Lane {self.endpoint.id:016x} {self.endpoint.state.value} queued={len(self.queue)} "
            f"running={self.running}/{self.limit}{' behind' if self.behind else ''}>"
        )

    @property
    def open(self) -> bool:
        return self.endpoint.state is EndpointState.ACTIVE

    @property
    def ready(self) -> bool:
        return bool(self.queue) and self.running < self.limit and self.open


class Lanes:
    """All lanes, and the turn-taking between them."""

    def __init__(self, *, capacity: int, endpoint_concurrency: int, monotonic: Callable[[], float]) -> None:
        self._capacity = capacity
        self._endpoint_concurrency = endpoint_concurrency
        self._monotonic = monotonic
        self._lanes: dict[int, Lane] = {}
        self._turns: deque[Lane] = deque()
        self._idle_takers: deque[asyncio.Future[None]] = deque()
        self._behind: set[Lane] = set()
        self._draining = False
        self.queued = 0
        self.running = 0
        self.on_room: Callable[[], None] = lambda: None
        """Called once when the room that was asked for has come about."""
        self._room_wanted = False
        self._awaited: Lane | None = None
        self.on_refill: Callable[[], None] = lambda: None
        """Called when a lane that is behind runs out of jobs."""

    def __repr__(self) -> str:
        return f"<Lanes {len(self._lanes)} queued={self.queued}/{self._capacity} running={self.running}>"

    def lane(self, endpoint_id: int) -> Lane | None:
        return self._lanes.get(endpoint_id)

    def room_of(self, lane: Lane) -> int:
        """How many more jobs the lane may hold."""
        share = min(lane.limit * JOBS_PER_SLOT, (self._capacity - self.queued) // 2)
        return max(lane.limit, share) - len(lane.queue)

    def want_room(self, lane: Lane | None = None) -> None:
        """Ask for `on_room`: when the lane is half empty, or without one, when all lanes together are."""
        self._awaited = lane
        self._room_wanted = True

    def behind(self) -> list[Lane]:
        """Open lanes with deliveries waiting in the database."""
        return [lane for lane in self._behind if lane.open]

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

    def trouble(self) -> list[LaneReport]:
        """The lanes that do not keep up, the most loaded first."""
        late = [lane for lane in self._lanes.values() if lane.open and (lane.behind or self._slow(lane))]
        late.sort(key=lambda lane: (lane.behind, len(lane.queue)), reverse=True)
        return [
            LaneReport(
                endpoint_id=lane.endpoint.id,
                state="slow",
                concurrency=lane.limit,
                running=lane.running,
                queued=len(lane.queue),
                latency_ms=None,
                waiting=lane.behind,
                reason="deliveries wait in the database" if lane.behind else "its queue is full",
            )
            for lane in late[:MAX_REPORTED]
        ]

    def update(self, endpoints: Iterable[Endpoint]) -> list[Job]:
        """Take over a new snapshot; return the jobs of lanes that closed, to be given back."""
        current = {endpoint.id: endpoint for endpoint in endpoints}
        returned: list[Job] = []
        for endpoint_id, endpoint in current.items():
            lane = self._lanes.get(endpoint_id)
            limit = endpoint.concurrency or self._endpoint_concurrency
            if lane is None:
                self._lanes[endpoint_id] = Lane(endpoint, limit)
                continue
            reopened = not lane.open and endpoint.state is EndpointState.ACTIVE
            lane.endpoint, lane.limit = endpoint, limit
            for job in lane.queue:
                job.endpoint = endpoint
            if reopened:
                self.mark_behind(endpoint_id)
            if not lane.open:
                returned += self._empty(lane)
            self._give_turn(lane)
            self._wake_taker()
        if self._behind:
            self.on_refill()
        for endpoint_id in self._lanes.keys() - current.keys():
            lane = self._lanes.pop(endpoint_id)
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
            waited = self._monotonic() - lane.queue[0].queued_at
            return Offer.SLOW if waited > SLOW_AFTER_S else Offer.FULL
        self.push(lane, job)
        return Offer.TAKEN

    def push(self, lane: Lane, job: Job) -> None:
        job.queued_at = self._monotonic()
        job.lane = lane
        lane.queue.append(job)
        self.queued += 1
        if lane.ready:
            self._give_turn(lane)
            self._wake_taker()

    async def take(self) -> Job | None:
        """The next job whose lane has a free slot, lanes taking turns; None when draining is over."""
        while True:
            while self._turns:
                lane = self._turns.popleft()
                lane.has_turn = False
                if not lane.ready:
                    continue
                job = lane.queue.popleft()
                lane.running += 1
                self.queued -= 1
                self.running += 1
                self._give_turn(lane)
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

    def done(self, job: Job) -> None:
        """Free the slot of a job that was taken. The caller takes again, so no other taker is woken."""
        lane = job.lane
        assert lane is not None
        self.running -= 1
        lane.running -= 1
        self._give_turn(lane)
        if self._room_wanted and self._has_room():
            self._room_wanted = False
            self.on_room()
        if lane.behind and len(lane.queue) <= lane.limit:
            self.on_refill()

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

    def _slow(self, lane: Lane) -> bool:
        """Whether the lane is full, and its head has waited long."""
        if self.room_of(lane) > 0:
            return False
        return self._monotonic() - lane.queue[0].queued_at > SLOW_AFTER_S

    def _empty(self, lane: Lane) -> list[Job]:
        jobs = list(lane.queue)
        lane.queue.clear()
        self.queued -= len(jobs)
        return jobs

    def _has_room(self) -> bool:
        if self._awaited is None:
            return self.queued <= self._capacity // 2
        return len(self._awaited.queue) <= self._awaited.limit * JOBS_PER_SLOT // 2

    def _give_turn(self, lane: Lane) -> None:
        if lane.ready and not lane.has_turn:
            lane.has_turn = True
            self._turns.append(lane)

    def _wake_taker(self) -> None:
        while self._idle_takers:
            taker = self._idle_takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return

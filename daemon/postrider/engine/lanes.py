"""Lanes: the in-memory queues between dispatcher and sender, one per endpoint. They decide, and do nothing.

Lanes with work take turns, workspace by workspace, each lane at its own pace; slow ones
together have a share of the global slots and of the memory, and so do those that never answered yet. What a
lane can't take goes to the database, and is fetched from there as there is room.

All times are seconds of one monotonic clock. What has to be done is returned, for the keeper of the lanes.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from postrider.domain.model import Endpoint
from postrider.domain.pacing import Breaker, LaneState, Pace
from postrider.domain.policy import Outcome
from postrider.domain.status import MAX_REPORTED, LaneReport
from postrider.engine.backlogs import Backlogs
from postrider.engine.decisions import Decisions, LaneChange, LaneEvent, Offer, pace_change
from postrider.engine.lane import ANY_EVENT, Lane
from postrider.engine.lane_room import LanesTuning, Room
from postrider.engine.ledger import Job, Ledger
from postrider.engine.turns import Turns


class Lanes:
    """All lanes, and the turn-taking between them."""

    def __init__(
        self, tuning: LanesTuning, *, concurrency: int, endpoint_concurrency: int, ledger: Ledger
    ) -> None:
        """`concurrency`: requests at a time in all; `endpoint_concurrency`: to one endpoint."""
        self._tuning = tuning
        self._endpoint_concurrency = endpoint_concurrency
        self._ledger = ledger
        self._endpoints: dict[int, Endpoint] = {}
        self._lanes: dict[int, Lane] = {}
        """Of endpoints that had something to send."""
        self._turns = Turns(concurrency, tuning.unproven_share, tuning.failing_share)
        self._room = Room(tuning)
        self._backlogs = Backlogs(tuning.most_looked_at)
        self.watched: set[Lane] = set()
        """Lanes with something under way, or with a limit below their window: `tick` looks after them."""
        self.running = 0
        """Requests under way."""
        self._decided: Decisions | None = None
        """What the decision under way has led to; None while that is nothing."""

    def __repr__(self) -> str:
        return (
            f"<Lanes {len(self._lanes)} {self._room} running={self.running} {self._turns} {self._backlogs}>"
        )

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
            lane = self._lanes[endpoint_id] = Lane(endpoint, self._new_pace(endpoint))
        return lane

    def room_of(self, lane: Lane, now: float) -> int:
        """How many more jobs the lane may hold."""
        return self._room.of(lane, now)

    @property
    def queued(self) -> int:
        """Deliveries in memory that wait for a slot."""
        return self._room.queued

    @property
    def crowded(self) -> bool:
        """Lanes that answer have used up half of the capacity."""
        return self._room.crowded

    @property
    def proven_with_turn(self) -> int:
        """How many lanes that answer could begin a request."""
        return self._turns.proven

    @property
    def unproven_with_turn(self) -> int:
        """How many lanes that are slow, or never answered, could."""
        return self._turns.unproven

    def trouble(self) -> list[LaneReport]:
        """The open lanes that do not keep up, at most `MAX_REPORTED`, those with most work first."""
        troubled = [lane for lane in self._lanes.values() if lane.open and lane.troubled]
        troubled.sort(key=lambda lane: (lane.has_backlog, len(lane.queue) + len(lane.running)), reverse=True)
        return [lane.report() for lane in troubled[:MAX_REPORTED]]

    def states(self) -> Counter[LaneState]:
        """How many open lanes are in each state."""
        return Counter(lane.state for lane in self._lanes.values() if lane.open)

    # What waits in the database.

    def refillable(self, most: int, now: float) -> tuple[list[Lane], bool]:
        """Some lanes that want a refill, taking turns as workspaces do; and whether there may be more."""
        return self._backlogs.pick(most, lambda lane: self.wants_refill(lane, now))

    def wants_refill(self, lane: Lane, now: float) -> bool:
        """Whether a lane could do with what waits for it in the database.

        Nothing that waits there may overtake what the lane gave back. It may overtake what was not taken,
        which is newer than what waited then, rather than that the lane stands still.
        """
        return (
            lane.waiting
            and lane.open
            and not (lane.refilling or lane.given_back or (lane.spilled and lane.queue))
            and len(lane.queue) <= lane.pace.limit
            and self._room.of(lane, now) > 0
        )

    def note_waiting(
        self, endpoint_id: int, event_id: UUID = ANY_EVENT, deliveries: float = math.inf
    ) -> bool:
        """Note that so many more deliveries of an endpoint, of this event or later ones, wait in the
        database; False if there is no such endpoint."""
        lane = self.lane(endpoint_id)
        if lane is None:
            return False
        lane.expect(event_id, deliveries)
        self._backlogs.add(lane)
        return True

    def note_found(self, endpoint_id: int) -> bool:
        """Note that deliveries of an endpoint were found waiting in the database; False if there is no such
        endpoint."""
        lane = self.lane(endpoint_id)
        known = lane is not None and lane.waiting
        return self.note_waiting(endpoint_id, deliveries=0 if known else math.inf)

    def note_recorded(self, endpoint_id: int, first_event_id: UUID, deliveries: int) -> None:
        """So many that were spilled, or given back, are in the database."""
        lane = self._lanes.get(endpoint_id)
        if lane is not None:
            lane.recorded(deliveries)
        self.note_waiting(endpoint_id, first_event_id, deliveries)

    def begin_refill(self, lanes: Iterable[Lane]) -> None:
        """What waits in the database is about to be claimed: what is left waiting from now on is noted anew.
        Until the refill ends, nothing newer gets into these lanes."""
        for lane in lanes:
            lane.refilling = True
            lane.expect_none()
            self._backlogs.remove(lane)

    def end_refill(self, claimed: Mapping[Lane, Sequence[Job]], now: float) -> Decisions | None:
        """Queue what was claimed for lanes that are open, perhaps nothing."""
        for lane in claimed:
            lane.refilling = False
        for lane, jobs in claimed.items():
            if lane.given_back:  # meanwhile, and what was claimed is newer than that
                self._return(lane, jobs)
                continue
            for job in jobs:
                self._push(lane, job, now)
            self._give_back(lane, now)  # it may have turned slow meanwhile
            self._look_for_room(lane, now)
        return self._decide()

    # What passes through the lanes.

    def offer(self, job: Job, now: float, *, patient: bool) -> Offer:
        """Queue a delivery that comes straight from the outbox, if its lane may take it.

        `patient`: the daemon as a whole is at its limit, so that waiting for a lane keeps nobody waiting.
        Else only a lane that has just become full is worth a moment.
        """
        lane = self.lane(job.endpoint_id)
        assert lane is not None
        if lane.open and self._ledger.admits(lane.share):
            if not (lane.has_backlog or lane.refilling) and self._room.of(lane, now) > 0:
                self._push(lane, job, now)
                return Offer.TAKEN
            if self._room.is_worth_waiting_for(lane, now, patient=patient):
                return Offer.FULL
        lane.spill()
        return Offer.SPILLED

    def spill(self, endpoint_id: int) -> None:
        """A delivery of this endpoint goes to the database without being offered."""
        lane = self.lane(endpoint_id)
        if lane is not None:
            lane.spill()

    def put_back(self, endpoint_id: int) -> None:
        """A delivery that was taken goes to the database unsent."""
        lane = self.lane(endpoint_id)
        if lane is not None:
            lane.give_back(1)

    def take(self, now: float, *, unproven: bool) -> Job | None:
        """The next job whose lane has a free slot, lanes taking turns; all of them, or the proven ones."""
        while (lane := self._turns.next(unproven=unproven)) is not None:
            if not lane.ready:
                continue
            job = lane.queue.popleft()
            job.taken_at = now
            lane.running[job] = None
            if len(lane.running) == 1:
                self.watched.add(lane)
            lane.pace.started(now)
            self._room.count(lane, -1)
            self.running += 1
            self._turns.count(lane, 1)
            self._turns.give(lane)
            return job
        return None

    def done(self, job: Job, outcome: Outcome | None, now: float) -> Decisions | None:
        """Free the slot of a job that was taken; `outcome` is None where it came to nothing."""
        lane = self._lanes[job.endpoint_id]
        full = len(lane.running) >= lane.pace.limit
        del lane.running[job]
        self.running -= 1
        self._turns.count(lane, -1)
        if job.share is not None:
            self._ledger.unmark(job)
        if outcome is not None:
            before = lane.pace.state
            lane.pace.ended(outcome, job.taken_at, now, full=full)
            if lane.pace.state is not before:
                self._tell_pace(lane, now)
            if lane.unproven:
                self._classify(lane, now)
            if lane.queue and lane.pace.resting(now):
                self._give_back(lane, now)
        self._turns.give(lane)
        if self._room.wanted:
            self._look_for_room(lane, now)
        if lane.waiting and self.wants_refill(lane, now):
            self._todo().refill = True
        if not lane.running and job.endpoint_id not in self._endpoints:
            del self._lanes[job.endpoint_id]
        return self._decide() if self._decided is not None else None

    def tick(self, now: float) -> Decisions | None:
        """Find out which lanes are slow, and end the rests that are over."""
        for lane in list(self.watched):
            self._classify(lane, now)
            before = lane.pace.state
            lane.pace.refresh(now)
            if lane.pace.state is not before:
                self._tell_pace(lane, now)
            self._turns.give(lane)
            if self.wants_refill(lane, now):
                self._todo().refill = True
            if not lane.running and lane.pace.limit and lane.pace.state is not LaneState.THROTTLED:
                self.watched.discard(lane)
        return self._decide()

    def want_room(self, endpoint_id: int | None) -> None:
        """Ask to be told of room: when that lane is half empty; without one, when all together are."""
        self._room.want(endpoint_id)

    def clear(self) -> None:
        """Forget what is queued."""
        for lane in self._lanes.values():
            self._empty(lane)

    def update(self, changed: Iterable[Endpoint], gone: Iterable[int], now: float) -> Decisions | None:
        """Take over endpoints that are new or changed, and forget those that are `gone`."""
        for endpoint in changed:
            self._endpoints[endpoint.id] = endpoint
            lane = self._lanes.get(endpoint.id)
            if lane is not None:
                self._change(lane, endpoint, now)
        for endpoint_id in gone:
            self._endpoints.pop(endpoint_id, None)
            lane = self._lanes.get(endpoint_id)
            if lane is not None:
                orphaned = self._empty(lane)
                if orphaned:
                    self._todo().orphaned += orphaned
                self._backlogs.remove(lane)
                lane.open = False
                if not lane.running:
                    del self._lanes[endpoint_id]
        return self._decide()

    def _change(self, lane: Lane, endpoint: Endpoint, now: float) -> None:
        self._turns.withdraw(lane)
        self._backlogs.remove(lane)
        before = lane.endpoint
        lane.take_over(endpoint)
        reopened = endpoint.open and not before.open
        if reopened or endpoint.url != before.url:
            lane.pace = self._new_pace(endpoint)
            self._set_class(lane, unproven=True, slow=False, failing=False)
        else:
            lane.pace.configure(endpoint.concurrency or self._endpoint_concurrency, endpoint.rate, now)
        if reopened:
            self.note_waiting(endpoint.id)
        elif lane.waiting:
            self._backlogs.add(lane)
        if not lane.open:
            self._return(lane, self._empty(lane))
        self._turns.give(lane)
        if self.wants_refill(lane, now):
            self._todo().refill = True

    def _new_pace(self, endpoint: Endpoint) -> Pace:
        return Pace(endpoint.concurrency or self._endpoint_concurrency, endpoint.rate, 0.0)

    def _todo(self) -> Decisions:
        if self._decided is None:
            self._decided = Decisions()
        return self._decided

    def _decide(self) -> Decisions | None:
        decided, self._decided = self._decided, None
        return decided

    def _push(self, lane: Lane, job: Job, now: float) -> None:
        job.queued_at = now
        if lane.unproven:
            self._ledger.mark(job, lane.share)
        lane.queue.append(job)
        self._room.count(lane, 1)
        if len(lane.running) < lane.pace.limit:
            self._turns.give(lane)
        elif lane.pace.limit == 0:
            self.watched.add(lane)

    def _classify(self, lane: Lane, now: float) -> None:
        oldest = next(iter(lane.running), None)
        age = now - oldest.taken_at if oldest is not None else 0.0
        # Twice as fast again before it counts as fast: no flapping.
        bound = self._tuning.slow_after_s / 2 if lane.slow else self._tuning.slow_after_s
        was_slow, slow = lane.slow, max(age, lane.pace.latency) > bound
        unproven = slow or not lane.pace.answered
        self._set_class(lane, unproven=unproven, slow=slow, failing=lane.failing and unproven)
        if slow is was_slow:
            return
        if lane.pace.breaker is Breaker.CLOSED:  # else that was told
            event = LaneEvent.SLOW if slow else LaneEvent.FAST
            latency_ms = round(max(age, lane.pace.latency) * 1000)
            self._todo().changes.append(LaneChange(event, lane.endpoint.id, latency_ms))
        if slow:
            self._give_back(lane, now)

    def _set_class(self, lane: Lane, *, unproven: bool, slow: bool, failing: bool) -> None:
        before = lane.share
        lane.slow = slow
        if (unproven, failing) != (lane.unproven, lane.failing):
            self._room.count(lane, -len(lane.queue))
            self._turns.reclassify(lane, unproven=unproven, failing=failing)
            self._room.count(lane, len(lane.queue))
        if lane.share is not before:
            for jobs in (lane.running, lane.queue):
                for job in jobs:
                    self._ledger.mark(job, lane.share)

    def _tell_pace(self, lane: Lane, now: float) -> None:
        """Tell of a new state of a lane's pace; a lane that rests keeps nothing in memory."""
        self._todo().changes.append(pace_change(lane.endpoint.id, lane.pace, now))
        self._give_back(lane, now)
        self.watched.add(lane)

    def _give_back(self, lane: Lane, now: float) -> None:
        """Return to the database what a lane in trouble has too much of: the newest. From here on the lane
        counts as one with older deliveries there, so that no newer event overtakes them."""
        excess = max(0, -self._room.of(lane, now))
        jobs: list[Job] = []
        while lane.queue and (excess > 0 or not self._ledger.admits(lane.share)):
            excess -= 1
            job = lane.queue.pop()
            self._room.count(lane, -1)
            self._ledger.unmark(job)
            jobs.append(job)
        self._return(lane, jobs)

    def _return(self, lane: Lane, jobs: Sequence[Job]) -> None:
        if jobs:
            lane.give_back(len(jobs))
            self._todo().given_back += jobs

    def _look_for_room(self, lane: Lane, now: float) -> None:
        if self._room.wanted and self._room.has_come_about(lane, now):
            self._todo().room = True

    def _empty(self, lane: Lane) -> list[Job]:
        jobs = list(lane.queue)
        lane.queue.clear()
        self._room.count(lane, -len(jobs))
        for job in jobs:
            self._ledger.unmark(job)
        return jobs

"""How much the lanes may hold, and for which of those that hold enough it is worth waiting.

A lane holds what it can send within a moment, while `capacity` lasts: at most half of what is free. One job
for each slot it may always hold, so slow endpoints can't keep others out, and memory is bounded by the
configuration.
"""

from dataclasses import dataclass

from postrider.domain.pacing import Breaker
from postrider.engine.lane import Lane


@dataclass(frozen=True, slots=True)
class LanesTuning:
    capacity: int = 8192
    """Deliveries in memory that wait for a slot; the rest of a backlog stays in the database."""
    jobs_per_slot: int = 8
    """At least so many may queue up for a slot of a lane that is not slow,"""
    queue_s: float = 0.25
    """and as many as take so long, going by its latency: a lane that turns slow has little to give back."""
    patience_s: float = 0.1
    """How old the first job in the queue of a full lane may be."""
    catch_up: int = 1000
    """Deliveries in the database, for which a lane is waited for if the daemon is at its limit."""
    slow_after_s: float = 0.5
    """A request that is under way for so long, or an average above it, makes a lane slow."""
    unproven_share: float = 0.5
    """Of the slots, for all lanes together that are slow or did not answer yet."""
    failing_share: float = 0.5
    """Of these, for lanes among them whose endpoint was failing when the daemon began to know it."""
    most_looked_at: int = 1000
    """Lanes with deliveries in the database, at one look for some to refill."""


class Room:
    """Counts what is queued in all lanes together."""

    def __init__(self, tuning: LanesTuning) -> None:
        self._tuning = tuning
        self.queued = 0
        self.unproven_queued = 0
        """Of these, in lanes that are slow or never answered."""
        self.wanted = False
        self._awaited: int | None = None

    def __repr__(self) -> str:
        return f"<Room {self.queued}/{self._tuning.capacity} unproven={self.unproven_queued}>"

    def count(self, lane: Lane, jobs: int) -> None:
        """So many more of a lane are queued, or fewer."""
        self.queued += jobs
        if lane.unproven:
            self.unproven_queued += jobs

    def of(self, lane: Lane, now: float) -> int:
        """How many more jobs the lane may hold."""
        pace, queued = lane.pace, len(lane.queue)
        if pace.breaker is not Breaker.CLOSED:
            return min(pace.limit, 1) - queued - len(lane.running)
        if pace.resting(now):
            return -queued
        window = int(pace.window)
        if pace.rate is not None:
            return max(1, min(window, int(pace.rate))) - queued
        if lane.slow:
            return window - queued
        tuning = self._tuning
        depth = window * tuning.jobs_per_slot
        if pace.latency:
            depth = max(depth, int(window / pace.latency * tuning.queue_s))
        used = self.queued if lane.unproven else self.queued - self.unproven_queued
        return max(window, min(depth, (tuning.capacity - used) // 2)) - queued

    @property
    def crowded(self) -> bool:
        """Lanes that answer have used up half of the capacity."""
        return self.queued - self.unproven_queued > self._tuning.capacity // 2

    def is_worth_waiting_for(self, lane: Lane, now: float, *, patient: bool) -> bool:
        """Whether a lane that takes nothing now will do so in a moment."""
        if lane.slow or lane.pace.rate is not None or lane.pace.breaker is not Breaker.CLOSED:
            return False
        if not lane.pace.limit:
            return False
        if lane.has_backlog and (not patient or lane.backlog + lane.spilled > self._tuning.catch_up):
            return False
        if lane.refilling:  # with the last of what waited, as far as is known
            return True
        if lane.ready and not lane.unproven:  # it waits for the daemon, not for its receiver
            return True
        age = now - lane.queue[0].queued_at if lane.queue else 0.0
        return age <= (self._tuning.slow_after_s if patient else self._tuning.patience_s)

    def want(self, endpoint_id: int | None) -> None:
        """Look out for room: when that lane is half empty, or without one, when all lanes together are."""
        self.wanted = True
        self._awaited = endpoint_id

    def has_come_about(self, lane: Lane, now: float) -> bool:
        """Whether this lane, of which a request ended, makes the room that is wanted: then it is no more."""
        if self._awaited is None:
            come = not self.crowded
        else:
            come = lane.endpoint.id == self._awaited and self.of(lane, now) >= len(lane.queue)
        self.wanted = not come
        return come

"""One lane: the queue of one endpoint, what is under way to it, and how it keeps up."""

from collections import deque
from typing import assert_never
from uuid import UUID

from postrider.domain.model import Endpoint
from postrider.domain.pacing import LaneState, Pace
from postrider.domain.status import LaneReport
from postrider.engine.ledger import Job, Share

ANY_EVENT = UUID(int=0)
_NO_EVENT = UUID(int=(1 << 128) - 1)


class Lane:
    __slots__ = (
        "backlog", "endpoint", "failing", "floor", "given_back", "has_turn", "open", "pace", "queue",
        "refilling", "running", "slow", "spilled", "unproven", "waiting",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, pace: Pace) -> None:
        self.take_over(endpoint)
        self.pace = pace
        self.queue: deque[Job] = deque()
        self.running: dict[Job, None] = {}
        """Oldest first."""
        self.has_turn = False
        self.waiting = False
        """Deliveries wait in the database, or may."""
        self.spilled = 0
        """Deliveries on their way there, not yet recorded."""
        self.given_back = 0
        """Of these, as they are recorded one after the other, so many until the last one that the lane held
        before: it may be older than all that waits there."""
        self.refilling = False
        """Deliveries are on their way back from there."""
        self.floor = _NO_EVENT
        """No delivery that waits in the database is of an event with a smaller id, as far as is known."""
        self.backlog = 0.0
        """How many deliveries wait in the database; infinite where that is not known."""
        self.slow = False
        self.unproven = True
        """Slow, or never seen to answer: it shares its slots, and memory, with others of the kind."""
        self.failing = endpoint.failing_since is not None
        """Unproven, and known to fail since before: it comes behind the others of the kind."""

    def __repr__(self) -> str:
        return (
            f"<Lane {self.endpoint.id:016x} {self.endpoint.state.value} {self.state} "
            f"queued={len(self.queue)} running={len(self.running)} spilled={self.spilled} {self.pace}>"
        )

    def take_over(self, endpoint: Endpoint) -> None:
        """Go on with the endpoint as it is now."""
        self.endpoint = endpoint
        self.open = endpoint.open  # it is asked several times for each delivery

    @property
    def has_backlog(self) -> bool:
        """Older deliveries than those to come are in the database: new ones have to queue up there."""
        return self.waiting or self.spilled > 0

    @property
    def share(self) -> Share:
        """Of memory, to which its deliveries count."""
        if not self.unproven:
            return Share.FREE
        return Share.SLOW if self.slow else Share.UNTRIED

    @property
    def ready(self) -> bool:
        return bool(self.queue) and len(self.running) < self.pace.limit and self.open

    @property
    def state(self) -> LaneState:
        """That of its pace, or else what keeps it from being up to date."""
        if self.pace.state is not LaneState.STEADY:
            return self.pace.state
        if self.slow:
            return LaneState.SLOW
        if self.pace.rate is not None and (self.queue or self.has_backlog):
            return LaneState.LIMITED
        return LaneState.BEHIND if self.has_backlog else LaneState.STEADY

    @property
    def troubled(self) -> bool:
        return self.state is not LaneState.STEADY

    def expect(self, event_id: UUID, deliveries: float) -> None:
        """So many more deliveries, of this event or later ones, wait in the database."""
        self.waiting = True
        self.floor = min(self.floor, event_id)
        self.backlog += deliveries

    def expect_none(self) -> None:
        """No delivery waits in the database that is not heard of after this."""
        self.waiting = False
        self.floor = _NO_EVENT
        self.backlog = 0.0

    def spill(self) -> None:
        """A delivery, newer than what the lane holds, is on its way to the database."""
        self.spilled += 1

    def give_back(self, jobs: int) -> None:
        """So many that it held are on their way to the database."""
        if jobs:
            self.spilled += jobs
            self.given_back = self.spilled

    def recorded(self, deliveries: int) -> None:
        """So many of those on their way to the database are there."""
        self.spilled = max(0, self.spilled - deliveries)
        self.given_back = max(0, self.given_back - deliveries)

    def report(self) -> LaneReport:
        return LaneReport(
            endpoint_id=self.endpoint.id,
            state=self.state,
            concurrency=int(self.pace.window),
            running=len(self.running),
            queued=len(self.queue),
            latency_ms=round(self.pace.latency * 1000, 1) if self.pace.latency else None,
            waiting=self.has_backlog,
            reason=self._reason(),
        )

    def _reason(self) -> str:
        state = self.state
        match state:
            case LaneState.SLOW:
                return "it takes long to answer"
            case LaneState.LIMITED:
                return f"no more than {self.pace.rate:g} requests a second are allowed"
            case LaneState.BEHIND:
                return "deliveries came faster than they could be sent"
            case LaneState.STEADY | LaneState.BROKEN | LaneState.RECOVERING | LaneState.THROTTLED:
                return self.pace.reason
            case _:
                assert_never(state)

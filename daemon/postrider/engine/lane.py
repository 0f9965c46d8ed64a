"""One lane: the queue of one endpoint, what is under way to it, and how it keeps up."""

from collections import deque
from uuid import UUID

from postrider.domain.model import Endpoint
from postrider.domain.pacing import Pace, PaceState
from postrider.domain.status import LaneReport
from postrider.engine.ledger import Job, Share

TROUBLES = ("throttled", "broken", "recovering", "slow", "limited", "behind")
ANY_EVENT = UUID(int=0)
_NO_EVENT = UUID(int=(1 << 128) - 1)


class Lane:
    __slots__ = (
        "backlog", "endpoint", "failing", "floor", "has_turn", "open", "pace", "queue", "running", "slow",
        "spilled", "suspect", "waiting",
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
        self.floor = _NO_EVENT
        """No delivery that waits in the database is of an event with a smaller id, as far as is known."""
        self.backlog = 0.0
        """How many deliveries wait in the database; infinite where that is not known."""
        self.slow = False
        self.suspect = True
        """Slow, or never seen to answer: it shares its slots, and memory, with others of the kind."""
        self.failing = endpoint.failing_since is not None
        """Suspect, and known to fail since before: it comes behind the other suspects."""

    def __repr__(self) -> str:
        return (
            f"<Lane {self.endpoint.id:016x} {self.endpoint.state.value} queued={len(self.queue)} "
            f"running={len(self.running)} {self.pace}{' slow' * self.slow}{' behind' * self.behind}>"
        )

    def take_over(self, endpoint: Endpoint) -> None:
        """Go on with the endpoint as it is now."""
        self.endpoint = endpoint
        self.open = endpoint.open  # it is asked several times for each delivery

    @property
    def behind(self) -> bool:
        """Older deliveries than those to come are in the database: new ones have to queue up there."""
        return self.waiting or self.spilled > 0

    @property
    def share(self) -> Share:
        """Of memory, to which its deliveries count."""
        if not self.suspect:
            return Share.FREE
        return Share.SLOW if self.slow else Share.UNTRIED

    @property
    def ready(self) -> bool:
        return bool(self.queue) and len(self.running) < self.pace.limit and self.open

    @property
    def state(self) -> str:
        """That of its pace, or else what keeps it from being up to date."""
        if self.pace.state is not PaceState.OPEN:
            return self.pace.state.value
        if self.slow:
            return "slow"
        if self.pace.rate is not None and (self.queue or self.behind):
            return "limited"
        return "behind" if self.behind else "open"

    @property
    def troubled(self) -> bool:
        return self.state != "open"

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

    def report(self) -> LaneReport:
        match self.state:
            case "slow":
                reason = "it takes long to answer"
            case "limited":
                reason = f"no more than {self.pace.rate:g} requests a second are allowed"
            case "behind":
                reason = "deliveries came faster than they could be sent"
            case _:
                reason = self.pace.reason
        return LaneReport(
            endpoint_id=self.endpoint.id,
            state=self.state,
            concurrency=int(self.pace.window),
            running=len(self.running),
            queued=len(self.queue),
            latency_ms=round(self.pace.latency * 1000, 1) if self.pace.latency else None,
            waiting=self.behind,
            reason=reason,
        )

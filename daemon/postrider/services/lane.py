"""One lane: the queue of one endpoint, what is under way to it, and how it keeps up."""

from collections import deque

from postrider.domain.model import Endpoint
from postrider.domain.pacing import Pace, PaceState
from postrider.domain.status import LaneReport
from postrider.services.work import Job

TROUBLES = ("throttled", "broken", "recovering", "slow", "limited", "behind")


class Lane:
    __slots__ = ("behind", "endpoint", "has_turn", "pace", "queue", "running", "slow", "suspect")

    def __init__(self, endpoint: Endpoint, pace: Pace) -> None:
        self.endpoint = endpoint
        self.pace = pace
        self.queue: deque[Job] = deque()
        self.running: dict[Job, None] = {}
        """Oldest first."""
        self.has_turn = False
        self.behind = False
        self.slow = False
        self.suspect = True
        """Slow, or never seen to answer: it shares its slots with others of the kind."""

    def __repr__(self) -> str:
        return (
            f"<Lane {self.endpoint.id:016x} {self.endpoint.state.value} queued={len(self.queue)} "
            f"running={len(self.running)} {self.pace}{' slow' * self.slow}{' behind' * self.behind}>"
        )

    @property
    def open(self) -> bool:
        return self.endpoint.open

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

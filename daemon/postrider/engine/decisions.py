"""What the lanes decide, for their keeper to act on."""

from enum import Enum

import msgspec

from postrider.domain.pacing import LaneState, Pace
from postrider.engine.ledger import Job


class Offer(Enum):
    """What becomes of a delivery that comes straight from the outbox."""

    TAKEN = "taken"
    FULL = "full"  # for a moment, since the daemon as a whole can't do more: it may be offered again
    SPILLED = "spilled"  # to be recorded as waiting


class LaneEvent(Enum):
    """What became of a lane."""

    SLOW = "slow"
    FAST = "fast"
    BROKEN = "broken"
    THROTTLED = "throttled"
    RECOVERING = "recovering"
    RECOVERED = "recovered"


class LaneChange(msgspec.Struct, frozen=True):
    """A lane's new state, to be told."""

    event: LaneEvent
    endpoint_id: int
    latency_ms: int | None = None
    concurrency: int | None = None
    """Requests at a time from now on."""
    pause_s: float | None = None
    """Before the next request."""
    reason: str | None = None


def pace_change(endpoint_id: int, pace: Pace, now: float) -> LaneChange:
    """The pace of a lane has a new state."""
    event = _EVENTS[pace.state]
    return LaneChange(
        event,
        endpoint_id,
        concurrency=int(pace.window),
        pause_s=round(pace.resume_at - now, 1) if pace.resting(now) else None,
        reason=pace.reason if event in (LaneEvent.BROKEN, LaneEvent.THROTTLED) else None,
    )


_EVENTS = {
    LaneState.STEADY: LaneEvent.RECOVERED,
    LaneState.BROKEN: LaneEvent.BROKEN,
    LaneState.RECOVERING: LaneEvent.RECOVERING,
    LaneState.THROTTLED: LaneEvent.THROTTLED,
}


class Decisions(msgspec.Struct):
    """What is to be done; all of it is noted in the lanes already."""

    room: bool = False
    """The room that was asked for has come about."""
    refill: bool = False
    """A lane could do with what waits for it in the database."""
    given_back: list[Job] = []
    """To be recorded as waiting, in this order and before any job that is offered after this."""
    orphaned: list[Job] = []
    """Their endpoint is deleted: to be recorded as cancelled."""
    changes: list[LaneChange] = []

"""What the lanes decide, for their keeper to act on."""

from enum import Enum, StrEnum

import msgspec

from postrider.engine.ledger import Job


class Offer(Enum):
    """What becomes of a delivery that comes straight from the outbox."""

    TAKEN = "taken"
    FULL = "full"  # for a moment, since the daemon as a whole can't do more: it may be offered again
    SPILLED = "spilled"  # to be recorded as waiting


class LaneEvent(StrEnum):
    """What happened to a lane, as the log calls it."""

    SLOW = "lane.slow"
    FAST = "lane.fast"
    BROKEN = "lane.broken"
    THROTTLED = "lane.throttled"
    RECOVERING = "lane.recovering"
    RECOVERED = "lane.recovered"


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

"""Who is at what waits; and what a daemon reports of itself: how fast it delivers, lanes in trouble.

The report is JSON in the daemon's row. Another version of Postrider may have written it: unknown fields are
passed over, and one that lacks a field is no report.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec

MAX_REPORTED = 50
"""Of a kind."""
MAX_COUNTED = 1_000_000
"""Events that wait are counted up to so many."""


class Progress(StrEnum):
    """How far the fan-out of an event is."""

    QUEUED = "queued"  # no daemon has taken it yet
    CLAIMED = "claimed"  # by a daemon that lives: its deliveries are made, and recorded as they end
    STRANDED = "stranded"  # the daemon that took it is dead: the next one takes it over
    DONE = "done"  # its deliveries have rows of their own


@dataclass(frozen=True, slots=True)
class Queue:
    """Events of which something is still to be recorded, and who is at it."""

    queued: int
    claimed: int
    stranded: int
    """The three by their progress."""
    daemons: int
    """Living ones."""

    @property
    def empty(self) -> bool:
        return not (self.queued or self.claimed or self.stranded)

    @property
    def sentence(self) -> str:
        """What waits, and who is at it; no more than is true."""
        parts = []
        if self.queued or self.empty:
            parts.append(f"{_events(self.queued)} queued, not yet fanned out")
        if self.claimed:
            parts.append(f"{_events(self.claimed)} under way")
        if self.stranded:
            parts.append(f"{_events(self.stranded)} left by a dead daemon, for the next one to take over")
        return "; ".join(parts)


NO_DAEMON = "no daemon is running"


def explain_progress(progress: Progress, daemons: int) -> str:
    """Why not all deliveries of an event have a row yet; `daemons` live."""
    match progress:
        case Progress.QUEUED if daemons:
            return "the event is queued, not yet fanned out; a daemon is running"
        case Progress.QUEUED:
            return f"the event is queued, not yet fanned out; {NO_DAEMON}"
        case Progress.CLAIMED:
            return "not all recorded yet; a running daemon is at it"
        case Progress.STRANDED if daemons:
            return "the daemon that was at it is dead; another one takes it over"
        case Progress.STRANDED:
            return f"the daemon that was at it is dead, and {NO_DAEMON}"
        case Progress.DONE:
            return "all recorded"


def _events(count: int) -> str:
    return "1 event is" if count == 1 else f"{count:,}{'+' if count >= MAX_COUNTED else ''} events are"


@dataclass(frozen=True, slots=True)
class LaneReport:
    """What a daemon decided about one endpoint."""

    endpoint_id: Annotated[int, msgspec.Meta(gt=0, le=2**63 - 1)]
    state: str
    """throttled, slow, broken, recovering, limited or behind; or unusable."""
    concurrency: int
    """Requests at a time that it is given at the moment."""
    running: int
    queued: int
    """Deliveries in memory that wait for a slot."""
    latency_ms: float | None
    """What its answers take, in milliseconds; None where that was not measured."""
    waiting: bool
    """More deliveries wait in the database."""
    reason: str


@dataclass(frozen=True, slots=True)
class DaemonReport:
    window_s: float
    """Seconds over which the rates were measured; 0 in the first report, which has none."""
    succeeded_per_s: float
    retried_per_s: float
    failed_per_s: float
    in_flight: int
    """Requests under way."""
    slots: int
    """Requests that may be under way at a time."""
    queued: int
    """Deliveries in memory that wait for a slot."""
    lanes: tuple[LaneReport, ...]
    """The lanes in trouble, worst first."""
    unusable: int = 0
    """Endpoints that nothing can be sent to; some of them are among the lanes."""


_DECODER = msgspec.json.Decoder(DaemonReport)


def write_report(report: DaemonReport) -> str:
    return msgspec.json.encode(report).decode()


def read_report(text: str) -> DaemonReport | None:
    """The report, or None if it is of a shape that this version does not know."""
    try:
        return _DECODER.decode(text)
    except msgspec.DecodeError:
        return None

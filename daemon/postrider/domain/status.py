"""What a daemon reports of itself: how fast it delivers, and which lanes are in trouble.

The report is JSON in the daemon's row. Another version of Postrider may have written it: unknown fields are
passed over, and one that lacks a field is no report.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec

MAX_REPORTED = 50
"""Of a kind."""


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

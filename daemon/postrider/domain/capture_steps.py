"""What is done about captures: the steps that make a database as the configuration says, and what becomes of
rows that triggers set aside."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

MAX_COUNTED = 10_000
"""Rows that are set aside are counted up to so many."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done for one capture."""

    name: str
    table: str
    action: str
    """create, change, drop or keep."""
    event_types: tuple[str, ...]
    diff: tuple[str, ...]
    """The section's lines that differ, as `-` and `+`; or why an equal section has to be applied again."""
    statements: tuple[str, ...]
    grants: tuple[str, ...]
    """What postrider_capture needs for it, as GRANT says it."""
    checksum: str
    applied: Mapping[str, object] | None = None
    """The section that is applied before it."""
    section: Mapping[str, object] | None = None
    """The section that is applied after it."""
    warnings: tuple[str, ...] = ()
    """What the section leaves out, and may be meant to tell."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row of which no event could be made."""

    id: int
    at: datetime
    capture: str
    operation: str
    object_id: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class SetAside:
    """How many rows a capture has set aside."""

    capture: str
    rows: int
    applied: bool
    """Whether events can be made of them; else they wait until the capture is applied."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What came of a batch of rows that were set aside."""

    rows: int
    """Rows that are done; one may make several events, or none."""
    events: int
    kept: int
    """Rows that stay: with the reason of this time, or because a lock is in the way."""
    last: int | None
    """The highest id of the batch; None if there was nothing to do."""


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of the rows that were set aside."""

    rows: int
    """Made into events."""
    events: int
    left: tuple[SetAside, ...]
    """What stays, by capture."""

    @property
    def kept(self) -> int:
        return sum(each.rows for each in self.left)

    @property
    def not_applied(self) -> list[SetAside]:
        """Those that wait until their capture is applied."""
        return [each for each in self.left if each.rows and not each.applied]

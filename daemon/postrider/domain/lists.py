"""What people ask lists of events and deliveries for, and the rows that they get."""

from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import UUID

from postrider.domain.model import DeliveryKey, DeliveryState, Event, emitted_at_s


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    workspace_id: str | None = None
    type_pattern: str | None = None
    """An event type, `deal.*` or `*`."""
    object_type: str | None = None
    object_id: str | None = None
    since: datetime | None = None
    """Events that were emitted then or later."""
    until: datetime | None = None
    """Events that were emitted before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFilter:
    endpoint_id: int | None = None
    event_id: UUID | None = None
    workspace_id: str | None = None
    state: DeliveryState | None = None
    since: datetime | None = None
    """Of events that were emitted then or later."""
    until: datetime | None = None
    """Of events that were emitted before."""
    type_pattern: str | None = None
    """An event type, `deal.*` or `*`."""
    http_status: range | None = None
    """Of the last attempt's answer."""
    tests: bool = True
    """Whether those of tests are wanted too."""


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A delivery as people see it."""

    event_id: UUID
    endpoint_id: int
    workspace_id: str
    event_type: str | None
    """None where retention removed the event."""
    test: bool
    state: DeliveryState
    attempts: int
    due: datetime | None
    updated_at: datetime
    reason: str | None
    http_status: int | None
    """Of the last attempt's answer."""
    url: str | None
    """Of the endpoint, as it is now."""

    @property
    def key(self) -> DeliveryKey:
        return self.event_id, self.endpoint_id

    @property
    def emitted_at(self) -> datetime:
        return datetime.fromtimestamp(emitted_at_s(self.event_id), UTC)

    @property
    def host(self) -> str | None:
        return host_of(self.url)


@dataclass(frozen=True, slots=True)
class FoundEvents:
    rows: list[Event]
    looked_to: UUID | None
    """The last event that was looked at, where the search ended before it had looked at all."""


@dataclass(frozen=True, slots=True)
class FoundDeliveries:
    rows: list[DeliveryRow]
    looked_to: DeliveryKey | None
    """The last row that was looked at, where the search ended before it had looked at all."""


def host_of(url: str | None) -> str | None:
    """Where a URL leads, without what may be secret in it; None where it is damaged."""
    try:
        parts = urlsplit(url or "")
        return parts.hostname and parts.netloc.rpartition("@")[2]
    except ValueError:
        return None

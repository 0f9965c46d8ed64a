"""The nouns of Postrider: event, endpoint, delivery, attempt; their states and public ids.

Which states may follow each other is told in `transitions`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import assert_never
from uuid import UUID

import msgspec

from postrider.domain.errors import UsageError
from postrider.domain.signing import Secret

# The types of which every delivery makes some are msgspec's: made in C, where a frozen dataclass takes about
# ten times as long.

DEFAULT_WORKSPACE = "default"
MAX_DATA_BYTES = 1_048_576
"""Largest JSON columns of an event together, in bytes of text; `postrider.emit` in sql/ holds the same
number."""
MAX_OBJECT_TYPE_LENGTH, MAX_OBJECT_ID_LENGTH, MAX_WORKSPACE_ID_LENGTH = 128, 512, 256
"""Characters; `postrider.emit` in sql/ holds the same numbers."""
MAX_DATA_DEPTH = 512
"""Deepest nesting of `data` that is sent: receivers' JSON parsers give up soon after."""


class DeliveryState(StrEnum):
    WAITING = "waiting"
    SENDING = "sending"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNSETTLED = frozenset({DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.RETRYING})
"""A daemon has something to do for those."""


class EndpointState(StrEnum):
    ACTIVE = "active"
    UNVERIFIED = "unverified"  # it has not answered its dialect's handshake: events do not become deliveries
    PAUSED = "paused"  # by a person: events still become deliveries, which wait
    DISABLED = "disabled"  # by the disable policy or a 410: events no longer become deliveries
    DELETED = "deleted"  # kept so that past deliveries stay explicable


class ErrorKind(StrEnum):
    """Why an attempt failed, coarse enough for a metric label."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    HTTP = "http"
    BLOCKED = "blocked"
    PAYLOAD = "payload"


class Event(msgspec.Struct, frozen=True):
    """A row of the outbox. JSON columns hold the text that the CRM wrote, byte for byte."""

    id: UUID
    workspace_id: str
    type: str
    data: str | None
    """None where the JSON columns together are larger than what was to be read."""
    data_bytes: int
    """Of all JSON columns together."""
    previous_attributes: str | None
    object_type: str | None
    object_id: str | None
    actor: str | None
    related: str | None
    occurred_at: datetime
    test: bool = False
    """Made up for a person who tries an endpoint: tried once, and no failure of the endpoint's."""
    problem: str | None = None
    """Why it can't be sent, where its row is gone or can't be read."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    id: int
    workspace_id: str
    url: str
    patterns: tuple[str, ...]
    exclusions: tuple[str, ...]
    dialect: str
    secrets: tuple[Secret, ...] = field(repr=False)
    """Newest first; every one signs where the header has room for it, so that a receiver can rotate."""
    state: EndpointState
    concurrency: int | None
    """Requests at a time; None takes `delivery.endpoint_concurrency`."""
    headers: Mapping[str, str] = field(repr=False)
    failing_since: datetime | None
    description: str = ""
    rate: float | None = None
    """Requests per second; None sets no bound."""
    unusable: str | None = None
    """Why nothing can be sent to it, without secrets: its row or its key is damaged."""

    @property
    def subscribed(self) -> bool:
        """Whether events become deliveries, be it only to wait."""
        match self.state:
            case EndpointState.ACTIVE | EndpointState.PAUSED:
                return True
            case EndpointState.UNVERIFIED | EndpointState.DISABLED | EndpointState.DELETED:
                return False
            case _:
                assert_never(self.state)

    @property
    def open(self) -> bool:
        """Whether its deliveries are sent; those of one that is subscribed and not open wait."""
        return self.state is EndpointState.ACTIVE and self.unusable is None


class Reply(msgspec.Struct, frozen=True):
    """What a receiver answered. `body` is at most `delivery.max_response_bytes`, decoded leniently."""

    status: int
    headers: str
    """Response headers, one `Name: value` a line, bounded."""
    body: str
    retry_after: str | None
    connect_ms: float | None
    """Time to look the name up, connect and shake hands; None on a reused connection."""
    duration_ms: float


class Failure(msgspec.Struct, frozen=True):
    """An attempt that got no usable response."""

    kind: ErrorKind
    reason: str
    """One sentence for the support person, without secrets."""
    duration_ms: float
    connect_ms: float | None = None


AttemptResult = Reply | Failure

DeliveryKey = tuple[UUID, int]
"""(event id, endpoint id): what names a delivery."""


class Attempt(msgspec.Struct, frozen=True):
    """One HTTP request of a delivery and what came of it. `number` counts from 1."""

    number: int
    started_at: datetime
    result: AttemptResult


def emitted_at_s(event_id: UUID) -> float:
    """When an event was emitted, in seconds since 1970: its id begins with the ms (RFC 9562, 5.7)."""
    return (event_id.int >> 80) / 1000


def first_event_id(moment: datetime) -> UUID:
    """The smallest id of an event that is emitted at that moment; none was before 1970."""
    return UUID(int=max(int(moment.timestamp() * 1000), 0) << 80)


def event_public_id(event_id: UUID) -> str:
    return f"evt_{event_id.hex}"


def endpoint_public_id(endpoint_id: int) -> str:
    return f"ep_{endpoint_id:016x}"


def delivery_public_id(event_id: UUID, endpoint_id: int) -> str:
    """A delivery is named by its event and its endpoint, so its id survives a crash and needs no index."""
    return f"dlv_{event_id.hex}{endpoint_id:016x}"


_LARGEST_ENDPOINT_ID = 2**63 - 1


def _hex(public_id: str, prefix: str, digits: int, what: str) -> str:
    match = re.fullmatch(rf"{prefix}([0-9a-f]{{{digits}}})", public_id, re.IGNORECASE)
    # The last digits are an endpoint's, but for an event's.
    if match and (digits == 32 or int(match[1][-16:], 16) <= _LARGEST_ENDPOINT_ID):
        return match[1]
    raise UsageError(
        f"{public_id!r} is not {what} id",
        f"It should be {prefix} and {digits} hexadecimal digits, as the list commands print it.",
    )


def parse_event_id(public_id: str) -> UUID:
    return UUID(hex=_hex(public_id, "evt_", 32, "an event"))


def parse_endpoint_id(public_id: str) -> int:
    return int(_hex(public_id, "ep_", 16, "an endpoint"), 16)


def parse_delivery_id(public_id: str) -> DeliveryKey:
    digits = _hex(public_id, "dlv_", 48, "a delivery")
    return UUID(hex=digits[:32]), int(digits[32:], 16)

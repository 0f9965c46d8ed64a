"""What people ask about dialects: which there are, and what their requests look like."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from postrider.domain.catalogue import Sample
from postrider.domain.dialects import Dialect, render, request_headers
from postrider.domain.errors import UsageError
from postrider.domain.model import DEFAULT_WORKSPACE, Event
from postrider.domain.signing import Secret

_SAMPLE_ID = UUID("0195a9b2-8e40-7000-8000-0123456789ab")
_SAMPLE_TIME = datetime(2026, 3, 15, 10, 30, tzinfo=UTC)
_NOTHING = Sample(None, None, "{}", None, None, None)
"""What a handshake tells of."""
_SAMPLE_SECRET = Secret(b"an example key, not a secret", b"an example key, not a secret")


@dataclass(frozen=True, slots=True)
class SampleRequest:
    headers: Mapping[str, str]
    body: bytes


def known_dialect(dialects: Mapping[str, Dialect], name: str) -> Dialect:
    """The dialect of that name; UsageError, with the nearest name, if there is none."""
    if name not in dialects:
        nearest = difflib.get_close_matches(name, dialects, n=1)
        raise UsageError(
            f"there is no dialect {name!r}",
            f"Did you mean {nearest[0]}?" if nearest else f"Known are: {', '.join(sorted(dialects))}.",
        )
    return dialects[name]


def sample_request(dialect: Dialect, event_type: str, *, user_agent: str) -> SampleRequest:
    """The request that the sample of an event type makes, or the handshake; ids, times and signatures are an
    example's. Raises UsageError for a type that is neither."""
    event = sample_event(dialect, event_type)
    body = render(dialect, event)
    headers = request_headers(
        dialect,
        event,
        [_SAMPLE_SECRET],
        timestamp=int(_SAMPLE_TIME.timestamp()),
        body=body,
        user_agent=user_agent,
        extra={},
    )
    return SampleRequest(headers, body)


def sample_event(dialect: Dialect, event_type: str) -> Event:
    """An event as the catalogue shows it, or the handshake. Raises UsageError for a type that is neither."""
    handshake = dialect.handshake is not None and event_type == dialect.handshake.type
    found = _NOTHING if handshake else dialect.catalogue.sample(event_type)
    return Event(
        id=_SAMPLE_ID,
        workspace_id=DEFAULT_WORKSPACE,
        type=event_type,
        data=found.data,
        data_bytes=len(found.data.encode()),
        previous_attributes=found.previous_attributes,
        object_type=found.object_type,
        object_id=found.object_id,
        actor=found.actor,
        related=found.related,
        occurred_at=_SAMPLE_TIME,
        test=handshake,
    )


def catalogue_sample(dialect: Dialect, event_type: str) -> Sample:
    """The catalogue's sample of a type. Raises UsageError where there is none."""
    if not dialect.events:
        raise UsageError(
            f"the dialect {dialect.name} has no catalogue, and so no sample of {event_type!r}",
            "Name one that has: --dialect D (`postrider dialect list`). Or bring the data: postrider emit.",
        )
    return dialect.catalogue.sample(event_type)

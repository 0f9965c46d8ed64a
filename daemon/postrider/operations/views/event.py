"""Events as JSON."""

from datetime import UTC, datetime
from uuid import UUID

import orjson

from postrider.domain.model import Event, emitted_at_s, event_public_id
from postrider.domain.status import Progress
from postrider.operations.events import ShownEvent
from postrider.operations.views.delivery import delivery_view
from postrider.operations.views.missed import missed_view
from postrider.operations.wording import printable
from postrider.store.statement import LOOK_AT_MOST

JSON_FACTS = ("data", "previous_attributes", "actor", "related")
"""What the CRM wrote as JSON."""


def event_view(event: Event) -> dict[str, object]:
    return {
        "id": event_public_id(event.id),
        "type": event.type,
        "workspace": event.workspace_id,
        "occurred_at": event.occurred_at,
        "object_type": event.object_type,
        "object_id": event.object_id,
        "data": _parsed(event.data) if event.data is not None else f"({event.data_bytes} bytes: too large)",
        "previous_attributes": _parsed(event.previous_attributes),
        "actor": _parsed(event.actor),
        "related": _parsed(event.related),
        "test": event.test,
    }


def shown_event_view(shown: ShownEvent) -> dict[str, object]:
    """An event with what becomes of it. pending: not all of its deliveries are recorded yet."""
    return {
        **event_view(shown.event),
        "pending": shown.progress is not Progress.DONE,
        "progress": shown.progress,
        "deliveries": [delivery_view(each) for each in shown.deliveries],
        "missed": [missed_view(each) for each in shown.missed],
    }


def where_it_ended(what: str, event_id: UUID, go_on: str) -> str:
    """That a list looked at no more than it may, and how to look further."""
    moment = printable(datetime.fromtimestamp(emitted_at_s(event_id), UTC))
    return f"looked at {LOOK_AT_MOST:,} {what}, to {moment}; narrow it down by time, or go on: {go_on}"


def _parsed(text: str | None) -> object:
    """JSON for display; text that a parser gives up on, such as one nested too deep, stays text."""
    if text is None:
        return None
    try:
        parsed: object = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text[:1000]
    return parsed

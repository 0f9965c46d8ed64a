"""Requests as the shipped dialects make them, for tests that look at bytes and headers."""

import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from postrider.domain.dialects import Dialect, render, request_headers
from postrider.domain.model import Event
from postrider.domain.signing import parse_secret
from postrider.edges.dialect_files import load_dialects

DIALECTS = load_dialects(())
EVENT_ID = UUID("0195a9b2-8e40-7000-8000-0123456789ab")


def json_text(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def event(event_type: str, data: Any, **fields: Any) -> Event:
    """An event of the CRM; `data` and other JSON as Python values or as text."""
    json_fields = {
        name: value if isinstance(value, str) else json_text(value)
        for name in ("previous_attributes", "actor", "related")
        if (value := fields.pop(name, None)) is not None
    }
    written = data if isinstance(data, str) else json_text(data)
    assert written is not None
    parts: dict[str, Any] = {
        "id": EVENT_ID,
        "workspace_id": "default",
        "previous_attributes": None,
        "object_type": None,
        "object_id": None,
        "actor": None,
        "related": None,
        "occurred_at": datetime(2026, 3, 15, 10, 30, tzinfo=UTC),
        **json_fields,
        **fields,
    }
    return Event(type=event_type, data=written, data_bytes=len(written.encode()), **parts)


def request(dialect: Dialect, sent: Event, *secrets: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of an attempt made now."""
    body = render(dialect, sent)
    headers = request_headers(
        dialect,
        sent,
        [parse_secret(secret) for secret in secrets],
        timestamp=int(time.time()),
        body=body,
        user_agent="Postrider/1",
        extra={},
    )
    return headers, body

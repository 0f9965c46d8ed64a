"""Requests as the shipped dialects make them, for tests that look at bytes and headers."""

import json
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


def moment(written: str) -> datetime:
    return datetime.fromisoformat(written.replace("Z", "+00:00"))


def again(crm: str, sample: dict[str, Any]) -> dict[str, Any]:
    """What the CRM's dialect makes of an event with the sample's values; the event's id is the sample's."""
    dialect = DIALECTS[crm]
    match crm:
        case "heffl":
            sent = event(sample["event"], sample["payload"], occurred_at=moment(sample["timestamp"]))
        case "nutshell":
            (lead,) = sample["payloads"]
            sent = event(
                "lead.created",
                lead,
                object_type="lead",
                object_id=lead["id"],
                actor=sample["actors"][0],
                related={"owners": sample["owners"]},
                occurred_at=datetime.fromtimestamp(sample["events"][0]["createdTime"], UTC),
            )
        case "nodestash":
            sent = event(
                sample["type"],
                sample["data"]["attributes"],
                previous_attributes=sample["previous_attributes"],
                object_type=sample["data"]["type"],
                object_id=sample["data"]["id"],
                workspace_id=sample["workspace_id"],
                occurred_at=moment(sample["created_at"]),
            )
        case _:
            handshake = dialect.handshake
            is_handshake = handshake is not None and sample["type"] == handshake.type
            sent = event(
                sample["type"],
                sample.get("data", {}),
                workspace_id=sample.get("workspace_id", "default"),
                occurred_at=moment(sample["created_at"]),
                test=is_handshake,
            )
            if handshake is not None and is_handshake:
                made: dict[str, Any] = json.loads(render(dialect, sent))
                assert made["id"] == f"evt_test_{EVENT_ID.hex}"
                return {**made, "id": sample["id"]}
    made = json.loads(render(dialect, sent))
    if crm == "nutshell":
        assert made["events"][0]["id"] == f"{EVENT_ID.int}-events"
        made["events"][0]["id"] = sample["events"][0]["id"]
    elif crm != "heffl":
        assert made["id"] == f"evt_{EVENT_ID.hex}"
        made["id"] = sample["id"]
    return made

"""What commands tell of a delivery: its facts, its attempts, and the request that it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from postrider.cli.common import Stores, known_dialect
from postrider.domain.dialects import render, unsigned_headers
from postrider.domain.envelope import PayloadError
from postrider.domain.errors import PostriderError
from postrider.domain.model import (
    Attempt,
    EndpointState,
    Event,
    Reply,
    delivery_public_id,
    emitted_at_s,
    endpoint_public_id,
    event_public_id,
)
from postrider.store import outbox
from postrider.store.delivery_search import DeliveryRow
from postrider.store.endpoint_rows import EndpointRow

_REBUILT = (
    "rebuilt from the event and the endpoint as they are now. Body and id are the same at every attempt. The "
    "timestamp is that of the last attempt's start, by the database's clock. Signatures were made with the "
    "secrets of that time and are not kept; values of the endpoint's own headers are never shown."
)


@dataclass(frozen=True, slots=True)
class Request:
    """A delivery's request, as far as it can be told."""

    url: str
    headers: dict[str, str | None]
    """None is withheld."""
    body: str | None
    notes: list[str]


def delivery_facts(row: DeliveryRow) -> dict[str, Any]:
    return {
        "id": delivery_public_id(row.event_id, row.endpoint_id),
        "event": event_public_id(row.event_id),
        "event_type": row.event_type,
        "test": row.test,
        "emitted_at": emitted_at(row),
        "endpoint": endpoint_public_id(row.endpoint_id),
        "host": host_of(row.url),
        "workspace": row.workspace_id,
        "state": row.state,
        "attempts": row.attempts,
        "http_status": row.http_status,
        "due": row.due,
        "reason": row.reason,
        "updated_at": row.updated_at,
    }


def emitted_at(row: DeliveryRow) -> datetime:
    return datetime.fromtimestamp(emitted_at_s(row.event_id), UTC)


def host_of(url: str | None) -> str | None:
    """Where a URL leads, without what may be secret in it; None where it is damaged."""
    try:
        parts = urlsplit(url or "")
        return parts.hostname and parts.netloc.rpartition("@")[2]
    except ValueError:
        return None


def attempt_facts(attempt: Attempt) -> dict[str, Any]:
    result = attempt.result
    facts: dict[str, Any] = {
        "number": attempt.number,
        "started_at": attempt.started_at,
        "duration_ms": round(result.duration_ms, 1),
        "connect_ms": round(result.connect_ms, 1) if result.connect_ms is not None else None,
    }
    if isinstance(result, Reply):
        return facts | {
            "status": result.status,
            "response_headers": result.headers,
            "response_body": result.body,
        }
    return facts | {"error_kind": result.kind, "reason": result.reason}


async def request_of(stores: Stores, row: DeliveryRow, attempts: Sequence[Attempt]) -> Request:
    """The request of a delivery: nothing keeps it, so it is rebuilt from the event and the endpoint."""
    endpoint = await stores.endpoints.get(row.endpoint_id)
    async with stores.database.connection() as connection:
        events = await outbox.read(connection, [row.event_id])
    last = attempts[-1].started_at if attempts else None
    notes = [_REBUILT]
    if last is not None and endpoint.updated_at > last:
        notes.append(
            "The endpoint was changed after the last attempt: URL, dialect and headers may have been others."
        )
    if endpoint.endpoint.state is EndpointState.DELETED:
        notes.append("The endpoint is deleted, and the names of its own headers are gone.")
    elif endpoint.endpoint.unusable is not None:
        notes.append(f"The endpoint can't be used: {endpoint.endpoint.unusable}.")
    try:
        if not events:
            raise PostriderError("retention removed the event")
        headers, body = _render(stores, endpoint, events[0], last)
    except (PostriderError, PayloadError) as error:
        return Request(endpoint.endpoint.url, {}, None, [*notes, f"The body can't be told: {error.message}."])
    return Request(endpoint.endpoint.url, headers, body.decode(), notes)


def _render(
    stores: Stores, row: EndpointRow, event: Event, at: datetime | None
) -> tuple[dict[str, str | None], bytes]:
    endpoint = row.endpoint
    dialect = known_dialect(endpoint.dialect, stores.config)
    body = render(dialect, event)
    headers = unsigned_headers(
        dialect,
        event,
        timestamp=None if at is None else int(at.timestamp()),
        user_agent=stores.config.delivery.user_agent,
        extra=endpoint.headers,
    )
    return {"host": host_of(endpoint.url), **headers, "content-length": str(len(body))}, body

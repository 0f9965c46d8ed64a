"""The request that a delivery is: nothing keeps it, so it is rebuilt from the event and the endpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from postrider.domain.audit import Scope
from postrider.domain.dialects import render, unsigned_headers
from postrider.domain.envelope import PayloadError
from postrider.domain.errors import PostriderError
from postrider.domain.lists import DeliveryRow, host_of
from postrider.domain.model import Attempt, EndpointState, Event
from postrider.operations.work import Setting, UnitOfWork
from postrider.store import endpoints, event_search
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


async def request_of(work: UnitOfWork, row: DeliveryRow, attempts: Sequence[Attempt]) -> Request:
    own = Scope(row.workspace_id)
    endpoint = await endpoints.get(work.connection, work.setting.sealer, own, row.endpoint_id)
    events = await event_search.read(work.connection, own, [row.event_id])
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
        headers, body = _render(work.setting, endpoint, events[0], last)
    except (PostriderError, PayloadError) as error:
        return Request(endpoint.endpoint.url, {}, None, [*notes, f"The body can't be told: {error.message}."])
    return Request(endpoint.endpoint.url, headers, body.decode(), notes)


def _render(
    setting: Setting, row: EndpointRow, event: Event, at: datetime | None
) -> tuple[dict[str, str | None], bytes]:
    endpoint = row.endpoint
    dialect = setting.dialects.get(endpoint.dialect)
    if dialect is None:
        raise PostriderError(f"there is no dialect {endpoint.dialect!r}")
    body = render(dialect, event)
    headers = unsigned_headers(
        dialect,
        event,
        timestamp=None if at is None else int(at.timestamp()),
        user_agent=setting.config.delivery.user_agent,
        extra=endpoint.headers,
    )
    return {"host": host_of(endpoint.url), **headers, "content-length": str(len(body))}, body

"""Requests that a person asks for: a test event for an endpoint, and the handshake of a new one.

Each is one signed request over the guarded network, sent at once, never repeated, and recorded as a delivery
that people can look at.
"""

import json
import secrets
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from postrider.domain.dialects import Dialect, Handshake, handshake_of, render
from postrider.domain.envelope import PayloadError
from postrider.domain.errors import UsageError
from postrider.domain.model import (
    Attempt,
    AttemptResult,
    DeliveryState,
    Endpoint,
    ErrorKind,
    Event,
    Failure,
    Reply,
)
from postrider.domain.policy import ONE_ATTEMPT, judge
from postrider.edges.clock import Clock
from postrider.engine.sender import SendSettings, send
from postrider.store import deliveries
from postrider.store.database import Database
from postrider.store.deliveries import DeliveryResult


def check_data(text: str) -> None:
    """Raises UsageError unless it is what emit() would take as data, before anything is sent."""

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is no JSON value")

    with suppress(RecursionError):  # rendering refuses it, and says why
        try:
            data = json.loads(text, parse_constant=refuse)
        except ValueError as error:
            raise UsageError(f"the data is not JSON: {error}", "Pass valid JSON.") from None
        if not isinstance(data, dict):
            raise UsageError("the data is not a JSON object", 'Pass an object, such as {"id":"dl_1"}.')


def made_up_event(
    endpoint: Endpoint,
    event_type: str,
    now: datetime,
    *,
    data: str = "{}",
    previous_attributes: str | None = None,
    object_type: str | None = None,
    object_id: str | None = None,
    actor: str | None = None,
    related: str | None = None,
) -> Event:
    """A test event for the workspace of an endpoint, with an id made here as the database would."""
    return Event(
        id=UUID(int=(int(now.timestamp() * 1000) << 80) | (7 << 76) | (2 << 62) | secrets.randbits(62)),
        workspace_id=endpoint.workspace_id,
        type=event_type,
        data=data,
        data_bytes=len(data.encode()),
        previous_attributes=previous_attributes,
        object_type=object_type,
        object_id=object_id,
        actor=actor,
        related=related,
        occurred_at=now,
        test=True,
    )


async def send_test(
    settings: SendSettings,
    dialect: Dialect,
    endpoint: Endpoint,
    event: Event,
    *,
    database: Database,
    clock: Clock,
) -> DeliveryResult:
    """Send a test event to one endpoint, and record what came of it. A handshake succeeds by the status that
    the dialect demands."""
    started_at = clock.now()
    result: AttemptResult
    try:
        body = render(dialect, event)
        result = await send(settings, dialect, endpoint, event, body=body, now=started_at)
    except PayloadError as error:
        result = Failure(ErrorKind.PAYLOAD, error.message, 0.0)
    outcome = judge(result, 1, ONE_ATTEMPT, clock.now(), 0.0)
    state, reason = outcome.state, outcome.reason
    handshake = handshake_of(dialect, event)
    if handshake is not None and isinstance(result, Reply) and result.status != handshake.status:
        state, reason = DeliveryState.FAILED, f"it answered HTTP {result.status}, not {handshake.status}"
    delivery = DeliveryResult(
        event_id=event.id,
        endpoint_id=endpoint.id,
        workspace_id=event.workspace_id,
        state=state,
        attempts=1,
        reason=None if state is DeliveryState.SUCCEEDED else reason,
        attempt=Attempt(1, started_at, result),
    )
    async with database.transaction() as connection:
        await deliveries.record_test(connection, event, delivery, clock.now())
    return delivery


async def shake_hands(
    settings: SendSettings,
    dialect: Dialect,
    handshake: Handshake,
    endpoint: Endpoint,
    *,
    database: Database,
    clock: Clock,
) -> DeliveryResult:
    """Ask an endpoint whether it is one; it is if the delivery succeeded, else `reason` says what it did."""
    event = made_up_event(endpoint, handshake.type, clock.now())
    return await send_test(settings, dialect, endpoint, event, database=database, clock=clock)

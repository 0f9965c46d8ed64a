"""Requests that a person asks for: a test event for an endpoint, and the handshake of a new one.

Each is one signed request over the guarded network, sent at once, never repeated, and recorded as a delivery
that people can look at.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from postrider.domain.audit import Actor, Scope
from postrider.domain.dialects import Dialect, handshake_of, render
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
    delivery_public_id,
)
from postrider.domain.policy import ONE_ATTEMPT, judge
from postrider.edges.network import WebhookClient
from postrider.edges.randomness import random_bits
from postrider.edges.settings import network_options
from postrider.engine.sender import SendSettings, send
from postrider.operations.work import Backend, Setting
from postrider.store import delivery_results, last_deliveries, outbox
from postrider.store.delivery_results import DeliveryResult


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of such a request."""

    event: Event
    endpoint_id: int
    state: DeliveryState
    reason: str | None
    """Why it failed; of a handshake: what the endpoint did instead of answering as its dialect demands."""
    result: AttemptResult

    @property
    def delivery_id(self) -> str:
        return delivery_public_id(self.event.id, self.endpoint_id)

    @property
    def succeeded(self) -> bool:
        return self.state is DeliveryState.SUCCEEDED


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
        id=UUID(int=(int(now.timestamp() * 1000) << 80) | (7 << 76) | (2 << 62) | random_bits(62)),
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


async def send_once(
    backend: Backend, actor: Actor, scope: Scope, dialect: Dialect, *, endpoint: Endpoint, event: Event
) -> Sent:
    """Send a test event to one endpoint, and record what came of it. A handshake succeeds by the status that
    the dialect demands."""
    clock = backend.clock
    started_at = clock.now()
    result = await _request(backend.setting, dialect, endpoint, event, started_at)
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
    async with backend.begin(actor, scope) as work:
        await outbox.add_test(work.connection, event)
        await delivery_results.add_finished(work.connection, delivery, work.now)
        await last_deliveries.note(work.connection, [delivery.as_last])
    return Sent(event, endpoint.id, delivery.state, delivery.reason, result)


async def shake_hands(
    backend: Backend, actor: Actor, scope: Scope, dialect: Dialect, endpoint: Endpoint
) -> Sent | None:
    """Ask an endpoint whether it is one, where its dialect demands that."""
    if dialect.handshake is None:
        return None
    event = made_up_event(endpoint, dialect.handshake.type, backend.clock.now())
    return await send_once(backend, actor, scope, dialect, endpoint=endpoint, event=event)


async def _request(
    setting: Setting, dialect: Dialect, endpoint: Endpoint, event: Event, now: datetime
) -> AttemptResult:
    config = setting.config
    async with WebhookClient(network_options(config)) as client:
        settings = SendSettings(
            client, setting.dialects, config.delivery.user_agent, config.network.https_only
        )
        try:
            body = render(dialect, event)
            return await send(settings, dialect, endpoint, event, body=body, now=now)
        except PayloadError as error:
            return Failure(ErrorKind.PAYLOAD, error.message, 0.0)

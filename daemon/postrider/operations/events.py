"""Events as people look at them, follow them, and have them sent again."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from postrider.domain.audit import Actor, Scope
from postrider.domain.dialects import parse_event_ids
from postrider.domain.errors import UsageError
from postrider.domain.lists import DeliveryFilter, DeliveryRow, EventFilter, FoundEvents
from postrider.domain.model import (
    DeliveryKey,
    DeliveryState,
    Endpoint,
    Event,
    delivery_public_id,
    first_event_id,
)
from postrider.domain.status import Progress
from postrider.operations import resending
from postrider.operations.work import Backend, UnitOfWork
from postrider.store import daemons, delivery_search, endpoints, event_search, missed, situation
from postrider.store.missed import Missed

MAX_DELIVERIES = 1000
"""Of one event, that are shown with it."""
FOLLOW_POLL_S = 0.3
FOLLOW_OVERLAP = timedelta(seconds=30)
"""How far back `follow` looks each time: rows become visible as they commit, not in the order of ids."""
FOLLOW_PAGE = 500


@dataclass(frozen=True, slots=True)
class ShownEvent:
    """An event, and what becomes of it."""

    event: Event
    progress: Progress
    daemons: int
    """Those that live."""
    deliveries: list[DeliveryRow]
    missed: list[Missed]
    """The endpoints that were disabled when it came."""


async def list_events(
    work: UnitOfWork, chosen: EventFilter, *, after: UUID | None, newest_first: bool, limit: int
) -> FoundEvents:
    """The events of a filter by the time of their emission, from the one `after` which to go on."""
    return await event_search.search(
        work.connection, work.scope, chosen, after=after, newest_first=newest_first, limit=limit
    )


async def find(work: UnitOfWork, text: str) -> UUID:
    """The event that an id means, in any dialect's form, whether or not it is there.

    Raises UsageError for what is no id.
    """
    meant = parse_event_ids(text, work.setting.dialects.values())
    if len(meant) == 1:
        return meant[0]
    # Two templates may fit one text; hardly will there be an event for each.
    known = await event_search.read(work.connection, work.scope, meant)
    return known[0].id if known else meant[0]


async def get(work: UnitOfWork, text: str) -> Event:
    """The event with that id, in any dialect's form. Raises UsageError if there is none."""
    found = await event_search.read(work.connection, work.scope, [await find(work, text)])
    if not found:
        raise UsageError(f"there is no event {text}", "Retention may have removed it.")
    return found[0]


async def show(work: UnitOfWork, text: str) -> ShownEvent:
    """An event with its deliveries, and who missed it."""
    event = await get(work, text)
    # In this order: what is recorded meanwhile is listed, and not told as missed.
    lost = await missed.of_event(work.connection, event)
    alive = await daemons.alive(work.connection)
    progress = await situation.progress(work.connection, event.id, alive)
    deliveries = await delivery_search.search(
        work.connection,
        work.scope,
        DeliveryFilter(event_id=event.id, workspace_id=event.workspace_id),
        after=None,
        newest_first=True,
        limit=MAX_DELIVERIES,
    )
    return ShownEvent(event, progress, len(alive), deliveries.rows, lost)


async def resend(work: UnitOfWork, text: str, endpoint_id: int) -> tuple[DeliveryKey, Endpoint]:
    """Send an event to one endpoint, whether or not it was sent there before; return the delivery, and the
    endpoint, which may be paused."""
    event = await get(work, text)
    row = await endpoints.get(work.connection, work.setting.sealer, work.scope, endpoint_id)
    key, was = await resending.resend(work, event, row)
    await work.note(
        "delivery.retried",
        delivery_public_id(*key),
        workspace_id=event.workspace_id,
        before=None if was is None else {"state": was},
        after={"state": DeliveryState.WAITING},
    )
    return key, row.endpoint


async def follow(
    backend: Backend, actor: Actor, scope: Scope, chosen: EventFilter, stop: asyncio.Event
) -> AsyncIterator[Event]:
    """The events of a filter as they are committed, from now on until `stop`."""
    seen: OrderedDict[UUID, None] = OrderedDict()
    started = backend.clock.now()
    while not stop.is_set():
        since = max(started, backend.clock.now() - FOLLOW_OVERLAP)
        after: UUID | None = first_event_id(since)
        while after is not None:
            async with backend.begin(actor, scope) as work:
                found = await list_events(work, chosen, after=after, newest_first=False, limit=FOLLOW_PAGE)
            for each in found.rows:
                if each.id not in seen:
                    seen[each.id] = None
                    yield each
            after = found.rows[-1].id if len(found.rows) == FOLLOW_PAGE else found.looked_to
        oldest = first_event_id(since - timedelta(seconds=1))
        for event_id in [each for each in seen if each < oldest]:
            del seen[event_id]
        await backend.clock.wait(stop, FOLLOW_POLL_S)

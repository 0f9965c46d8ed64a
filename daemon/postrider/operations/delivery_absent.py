"""Why a delivery is in no list: its event is not fanned out yet, or its endpoint was disabled."""

from collections.abc import Sequence
from uuid import UUID

from postrider.domain.lists import DeliveryRow
from postrider.domain.model import (
    UNSETTLED,
    DeliveryKey,
    DeliveryState,
    endpoint_public_id,
    event_public_id,
)
from postrider.domain.status import NO_DAEMON, Progress, explain_progress
from postrider.operations.wording import missed_text
from postrider.operations.work import UnitOfWork
from postrider.store import daemons, event_search, missed, situation


async def unlisted(
    work: UnitOfWork, event_id: UUID | None, state: DeliveryState | None, rows: Sequence[DeliveryRow]
) -> list[str]:
    """What a list of deliveries can't show: those that have no row yet, and that nobody is at it.

    How much the whole installation has to do is for those who may see all of it.
    """
    if state is not None and state not in UNSETTLED:
        return []
    alive = await daemons.alive(work.connection)
    notes = []
    if state in (None, DeliveryState.WAITING, DeliveryState.SENDING):
        if event_id is not None:
            progress = await _progress(work, event_id, alive)
            if progress is not Progress.DONE:
                return [f"not listed yet: {explain_progress(progress, len(alive))}"]
        elif work.scope.workspace_id is None:
            queue, _ = await situation.queue(work.connection, alive)
            if not queue.empty:
                notes.append(f"deliveries of these are not listed yet: {queue.sentence}")
    if not alive and (notes or any(row.state in UNSETTLED for row in rows)):
        notes.append(NO_DAEMON)
    return notes


async def why_absent(work: UnitOfWork, key: DeliveryKey) -> str:
    """Why there is no such delivery, and what to do."""
    if (lost := await why_missed(work, key)) is not None:
        return lost
    alive = await daemons.alive(work.connection)
    progress = await _progress(work, key[0], alive)
    if progress is Progress.DONE:
        return "Retention may have removed it, or the endpoint was not subscribed."
    return f"It may come: {explain_progress(progress, len(alive))}."


async def why_missed(work: UnitOfWork, key: DeliveryKey) -> str | None:
    """That an endpoint has no delivery of an event because it was disabled, and what to do."""
    event_id, endpoint_id = key
    for event in await event_search.read(work.connection, work.scope, [event_id]):
        for each in await missed.of_event(work.connection, event):
            if each.endpoint_id == endpoint_id:
                evt, ep = event_public_id(event_id), endpoint_public_id(endpoint_id)
                return f"{missed_text(each)}; send it: postrider event resend {evt} --endpoint {ep}"
    return None


async def _progress(work: UnitOfWork, event_id: UUID, alive: set[int]) -> Progress:
    """How far the fan-out of an event is; of one outside of the scope there is none."""
    if work.scope.workspace_id is not None and not await event_search.read(
        work.connection, work.scope, [event_id]
    ):
        return Progress.DONE
    return await situation.progress(work.connection, event_id, alive)

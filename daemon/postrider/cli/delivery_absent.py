"""Why a delivery is in no list: its event is not fanned out yet, or its endpoint was disabled."""

from collections.abc import Sequence
from uuid import UUID

from postrider.cli.common import Stores
from postrider.cli.endpoint_facts import missed_text
from postrider.domain.model import UNSETTLED, DeliveryState, endpoint_public_id, event_public_id
from postrider.domain.status import NO_DAEMON, Progress, explain_progress
from postrider.store import daemons, outbox
from postrider.store.deliveries import DeliveryKey
from postrider.store.delivery_search import DeliveryRow
from postrider.store.status import Status


async def unlisted(
    stores: Stores, event_id: UUID | None, status: str | None, rows: Sequence[DeliveryRow]
) -> list[str]:
    """What a list of deliveries can't show: those that have no row yet, and that nobody is at it."""
    if status is not None and status not in UNSETTLED:
        return []
    async with stores.database.connection() as connection:
        alive = await daemons.alive(connection)
    notes = []
    if status in (None, DeliveryState.WAITING, DeliveryState.SENDING):
        if event_id is not None:
            progress = await Status(stores.database).progress(event_id, alive)
            if progress is not Progress.DONE:
                return [f"not listed yet: {explain_progress(progress, len(alive))}"]
        else:
            queue = await Status(stores.database).queue(alive)
            if not queue.empty:
                notes.append(f"deliveries of these are not listed yet: {queue.sentence}")
    if not alive and (notes or any(row.state in UNSETTLED for row in rows)):
        notes.append(NO_DAEMON)
    return notes


async def why_absent(stores: Stores, key: DeliveryKey) -> str:
    """Why there is no such delivery, and what to do."""
    if (missed := await why_missed(stores, key)) is not None:
        return missed
    async with stores.database.connection() as connection:
        alive = await daemons.alive(connection)
    progress = await Status(stores.database).progress(key[0], alive)
    if progress is Progress.DONE:
        return "Retention may have removed it, or the endpoint was not subscribed."
    return f"It may come: {explain_progress(progress, len(alive))}."


async def why_missed(stores: Stores, key: DeliveryKey) -> str | None:
    """That an endpoint has no delivery of an event because it was disabled, and what to do."""
    event_id, endpoint_id = key
    async with stores.database.connection() as connection:
        found = await outbox.read(connection, [event_id])
    for event in found:
        for missed in await stores.missed.of_event(event):
            if missed.endpoint_id == endpoint_id:
                evt, ep = event_public_id(event_id), endpoint_public_id(endpoint_id)
                return f"{missed_text(missed)}; send it: postrider event resend {evt} --endpoint {ep}"
    return None

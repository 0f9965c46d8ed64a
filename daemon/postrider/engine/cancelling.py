"""Cancels what is left waiting for an endpoint that is deleted: by whoever deleted it, or by a daemon that
finds it."""

from postrider.edges.clock import Clock
from postrider.store import endpoint_deliveries
from postrider.store.database import Database


async def cancel_left(database: Database, clock: Clock, endpoint_id: int, batch: int) -> int:
    """Cancel what waits for an endpoint if it is deleted, so many deliveries in a transaction; return how
    many those were."""
    cancelled = 0
    while True:
        async with database.transaction() as connection:
            count = await endpoint_deliveries.cancel_left(connection, endpoint_id, clock.now(), batch)
        cancelled += count
        if count < batch:
            return cancelled

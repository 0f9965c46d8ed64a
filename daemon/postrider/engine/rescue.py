"""Frees what a daemon held: one that stops, or one that others found dead.

Its claims and deliveries go back and its row goes in one transaction, so it holds either all of it or
nothing.
"""

from dataclasses import dataclass
from datetime import datetime

from postrider.store import daemons, deliveries, outbox
from postrider.store.daemons import DeadDaemon
from postrider.store.database import Busy, Connection, Database

LOCK_MS = 2_000
"""A session that could not be ended may hold rows of a dead daemon; the next rescue tries again."""


@dataclass(frozen=True, slots=True)
class Freed:
    daemon_id: int
    events: int
    """For a new fan-out."""
    deliveries: int
    """That are waiting now."""


async def leave(connection: Connection, daemon_id: int, now: datetime) -> Freed:
    """Give back everything that a daemon holds, and strike it out, in a transaction of the caller's."""
    freed = Freed(
        daemon_id,
        events=await outbox.release_all(connection, daemon_id),
        deliveries=await deliveries.release_all(connection, daemon_id, now),
    )
    await daemons.strike_out(connection, daemon_id)
    return freed


async def rescue(database: Database, own_id: int, now: datetime) -> list[Freed]:
    """Free the rows of dead daemons; return what each of them left.

    Some rows may be of daemons that were struck out before they claimed them, unaware of it.
    """
    async with database.connection() as connection:
        dead = await daemons.dead(connection, own_id)
        strangers = await daemons.struck_out(connection)
    freed = [await _rescue_one(database, each, now) for each in dead]
    for daemon_id in strangers:
        async with database.transaction() as connection:
            freed.append(await leave(connection, daemon_id, now))
    return [each for each in freed if each is not None]


async def _rescue_one(database: Database, dead: DeadDaemon, now: datetime) -> Freed | None:
    if dead.application_name is not None:
        # A host that froze or vanished may have left them in the middle of a transaction.
        async with database.connection() as connection:
            await daemons.end_sessions(connection, dead.application_name)
    try:
        async with database.brief_transaction("rescue", LOCK_MS) as connection:
            if not await daemons.still_dead(connection, dead.id):
                return None
            return await leave(connection, dead.id, now)
    except Busy:
        return None

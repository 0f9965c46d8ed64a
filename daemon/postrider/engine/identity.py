"""Under which id a daemon is known to others: entered in the registry, and locked by its session where it has
one of its own."""

from dataclasses import dataclass

from postrider.edges.clock import Clock
from postrider.edges.randomness import random_id
from postrider.store import daemons
from postrider.store.database import Connection

ANOTHER_TRY_S = 0.1
"""After a session was ended that held the lock."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a daemon tells of itself. `version` and `schema` are those of its program."""

    application_name: str
    version: str
    schema: int
    pooled: bool
    """It has no session of its own, and no lock."""

    async def register(self, connection: Connection) -> int:
        """Enter a new daemon; return its id, locked by the session of `connection`."""
        while True:
            daemon_id = random_id(31)
            if not self.pooled and not await daemons.lock(connection, daemon_id):
                continue
            if await daemons.enter(
                connection,
                daemon_id,
                application_name=self.application_name,
                version=self.version,
                schema=self.schema,
                pooled=self.pooled,
            ):
                return daemon_id

    async def resume(self, connection: Connection, daemon_id: int, clock: Clock) -> bool:
        """Take up the id again in a new session; False if others rescued its rows meanwhile.

        The server may not have noticed yet that the old session is gone: that one is ended. Somebody else may
        hold the lock; the daemon then lives by its heartbeat.
        """
        locked = await daemons.lock(connection, daemon_id)
        if not locked:
            await daemons.end_sessions(connection, self.application_name, holding=daemon_id)
            await clock.sleep(ANOTHER_TRY_S)
            locked = await daemons.lock(connection, daemon_id)
        return await daemons.come_back(connection, daemon_id, locked=locked)

"""Notices that a migration has left this daemon's program behind, which starting again can't mend.

Woken when a service fails, since what it asked for may be gone; it looks at the database every 10 s besides.
"""

import asyncio

import structlog

from postrider.edges.clock import Clock
from postrider.store.database import Database
from postrider.store.migrations import OutdatedProgram, Schema, check_schema

POLL_S = 10.0

log = structlog.get_logger()


class SchemaWatch:
    def __init__(self, *, database: Database, schema: Schema, clock: Clock) -> None:
        self._database = database
        self._schema = schema
        self._clock = clock
        self._wake = asyncio.Event()
        self._outdated: asyncio.Future[OutdatedProgram] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<SchemaWatch {'outdated' if self._outdated.done() else self._schema.number}>"

    def wake(self) -> None:
        self._wake.set()

    async def outdated(self) -> OutdatedProgram:
        """Wait until the program is too old; return why."""
        return await asyncio.shield(self._outdated)

    async def run(self) -> None:
        while not await self.run_once():
            await self._clock.wait(self._wake, POLL_S)
            self._wake.clear()

    async def run_once(self) -> bool:
        """Whether the program is too old for the schema. Raises SchemaError where it differs otherwise."""
        try:
            async with self._database.connection() as connection:
                await check_schema(connection, self._schema)
        except OutdatedProgram as error:
            if not self._outdated.done():
                log.error("daemon.outdated", reason=error.message, hint=error.hint)
                self._outdated.set_result(error)
            return True
        return False

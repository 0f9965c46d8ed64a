"""Notices that a migration has left this daemon's program behind, which starting again can't mend.

Woken when a service fails, since what it asked for may be gone; it looks at the database every 10 s besides.
"""

import asyncio
from dataclasses import dataclass

import structlog

from postrider.edges.clock import Clock
from postrider.engine.signals import Signal
from postrider.store.database import Database
from postrider.store.migrations import OutdatedProgram, Schema, check_schema

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SchemaWatchTuning:
    interval_s: float = 10.0


@dataclass(frozen=True, slots=True)
class SchemaCounts:
    outdated: int
    """1 where the program is too old for the schema."""


class SchemaWatch:
    def __init__(
        self,
        *,
        database: Database,
        schema: Schema,
        wake: Signal,
        clock: Clock,
        tuning: SchemaWatchTuning | None = None,
    ) -> None:
        self._database = database
        self._schema = schema
        self._wake = wake
        self._clock = clock
        self._tuning = tuning or SchemaWatchTuning()
        self._outdated: asyncio.Future[OutdatedProgram] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<SchemaWatch {'outdated' if self._outdated.done() else self._schema.number}>"

    async def outdated(self) -> OutdatedProgram:
        """Wait until the program is too old; return why."""
        return await asyncio.shield(self._outdated)

    async def run(self) -> None:
        while not (await self.run_once()).outdated:
            await self._wake.wait(self._clock, self._tuning.interval_s)
            self._wake.clear()

    async def run_once(self) -> SchemaCounts:
        """Compare program and schema. Raises SchemaError where they differ otherwise."""
        try:
            async with self._database.connection() as connection:
                await check_schema(connection, self._schema)
        except OutdatedProgram as error:
            if not self._outdated.done():
                log.error("daemon.outdated", reason=error.message, hint=error.hint)
                self._outdated.set_result(error)
            return SchemaCounts(1)
        return SchemaCounts(0)

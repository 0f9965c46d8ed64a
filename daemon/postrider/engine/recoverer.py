"""Makes events of rows that capture triggers set aside, as soon as that is possible.

It wakes by itself every few seconds, and goes on at once while it gets on. What a table's owner defined runs
there, and may be slow: nothing else waits for it.
"""

import asyncio

import structlog

from postrider.domain.capture_steps import Recovery
from postrider.edges.clock import Clock
from postrider.engine.recovery import recover
from postrider.store.database import Database

INTERVAL_S = 5.0
BATCH = 500
BUDGET_S = 10.0
"""After that no further part of a batch is begun; new rows of other captures get their turn."""

log = structlog.get_logger()


class Recoverer:
    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def run(self) -> None:
        never = asyncio.Event()
        while True:
            batch = await self.run_once()
            if not batch.rows:
                await self._clock.wait(never, INTERVAL_S)

    async def run_once(self) -> Recovery:
        ends_at = self._clock.monotonic() + BUDGET_S
        batch = await recover(self._database, limit=BATCH, enough=lambda: self._clock.monotonic() > ends_at)
        if batch.rows:
            log.info("capture.recovered", rows=batch.rows, events=batch.events, kept=batch.kept)
        return batch

"""Makes events of rows that capture triggers set aside, as soon as that is possible.

It wakes by itself every few seconds, and goes on at once while it gets on. What a table's owner defined runs
there, and may be slow: nothing else waits for it.
"""

from dataclasses import dataclass

import structlog

from postrider.domain.capture_steps import Recovery
from postrider.edges.clock import Clock
from postrider.engine.recovery import recover
from postrider.store.database import Database

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RecovererTuning:
    interval_s: float = 5.0
    batch: int = 500
    """Rows."""
    budget_s: float = 10.0
    """After that no further part of a batch is begun; new rows of other captures get their turn."""


class Recoverer:
    def __init__(self, *, database: Database, clock: Clock, tuning: RecovererTuning | None = None) -> None:
        self._database = database
        self._clock = clock
        self._tuning = tuning or RecovererTuning()
        self._last: Recovery | None = None

    def __repr__(self) -> str:
        return f"<Recoverer {self._last or 'at first'}>"

    async def run(self) -> None:
        while True:
            batch = await self.run_once()
            if not batch.rows:
                await self._clock.sleep(self._tuning.interval_s)

    async def run_once(self) -> Recovery:
        ends_at = self._clock.monotonic() + self._tuning.budget_s
        batch = await recover(
            self._database, limit=self._tuning.batch, enough=lambda: self._clock.monotonic() > ends_at
        )
        self._last = batch
        if batch.rows:
            log.info("capture.recovered", rows=batch.rows, events=batch.events, kept=batch.kept)
        return batch

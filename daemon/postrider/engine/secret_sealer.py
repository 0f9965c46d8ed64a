"""Leaves no secret of an endpoint in clear text where there is a key.

Woken when all endpoints were read anew: at the start, when a reload may have brought a key, and when a crash
undid what was sealed.
"""

from dataclasses import dataclass

import structlog

from postrider.domain.sealing import Sealer
from postrider.edges.clock import Clock
from postrider.engine.signals import Signal
from postrider.store.database import Database
from postrider.store.endpoint_sealing import seal_plain

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SecretSealerTuning:
    batch: int = 64
    """Headers, and secrets, that are sealed in one transaction."""


class SecretSealer:
    def __init__(
        self,
        *,
        database: Database,
        sealer: Sealer,
        due: Signal,
        clock: Clock,
        tuning: SecretSealerTuning | None = None,
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._due = due
        self._clock = clock
        self._tuning = tuning or SecretSealerTuning()

    def __repr__(self) -> str:
        return f"<SecretSealer {'due' if self._due else 'done'}>"

    def configure(self, sealer: Sealer) -> None:
        """Take over the key of a new configuration, with which all endpoints are read anew."""
        self._sealer = sealer

    async def run(self) -> None:
        while True:
            await self._due.wait(self._clock)
            await self.run_once()

    async def run_once(self) -> int:
        """Seal all there is; return how many values that were."""
        self._due.clear()
        total = 0
        try:
            if self._sealer.seals:
                while sealed := await self._seal_some():
                    total += sealed
        except BaseException:
            self._due.set()
            raise
        if total:
            log.info("secrets.sealed", values=total)
        return total

    async def _seal_some(self) -> int:
        async with self._database.transaction() as connection:
            return await seal_plain(connection, self._sealer, self._tuning.batch)

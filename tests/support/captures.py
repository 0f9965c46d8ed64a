"""Captures as an operator handles them, each act in a transaction of its own."""

from collections.abc import Sequence
from datetime import datetime
from time import monotonic

from postrider.domain.capture import Capture
from postrider.domain.capture_steps import Recovery, Rejection, Step
from postrider.engine.recovery import recover
from postrider.store import capture_deleted, capture_guard, capture_rejections, captures
from postrider.store.capture_recovery import PATIENCE, Patience
from postrider.store.database import Database


class Captures:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def plan(self, sections: Sequence[Capture]) -> list[Step]:
        async with self._database.transaction() as connection:
            return await captures.plan(connection, sections)

    async def apply(self, sections: Sequence[Capture], now: datetime) -> list[Step]:
        async with self._database.transaction() as connection:
            return await captures.apply(connection, sections, now)

    async def drop(self, names: Sequence[str] | None, *, with_rejected: bool = False) -> list[Step]:
        async with self._database.transaction() as connection:
            steps = await captures.drop(connection, names)
            if with_rejected:
                await capture_rejections.discard(connection, [step.name for step in steps])
        return steps

    async def recover(
        self,
        *,
        limit: int,
        after: int | None = None,
        budget_s: float = float("inf"),
        patience: Patience = PATIENCE,
    ) -> Recovery:
        """As the daemon does; with `after` as a person, who may be a superuser."""
        if after is not None:
            async with self._database.connection() as connection:
                await capture_guard.demand_own_functions(connection)
        ends_at = monotonic() + budget_s
        return await recover(
            self._database,
            limit=limit,
            after=after,
            enough=lambda: monotonic() > ends_at,
            patience=patience,
        )

    async def rejections(self) -> list[Rejection]:
        async with self._database.connection() as connection:
            return await capture_rejections.latest(connection, 1000)

    async def tell_rejections(self) -> list[Rejection]:
        async with self._database.connection() as connection:
            return await capture_rejections.tell(connection, 10)

    async def count_rejections(self) -> int:
        async with self._database.connection() as connection:
            return await capture_rejections.count(connection)

    async def forget(self, before: datetime) -> None:
        async with self._database.connection() as connection:
            await capture_rejections.forget(connection, before)
            await capture_deleted.forget(connection)

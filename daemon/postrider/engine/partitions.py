"""Looks after the daily partitions: makes them ahead, drops those past retention.

It wakes by itself once an hour; sooner, in growing steps, where a lock was not to be had. Every change waits
for its lock only for a moment, because the CRM's writers wait behind it, and is given up where it does not
get it.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import structlog

from postrider.domain.model import endpoint_public_id
from postrider.edges.clock import Clock
from postrider.store import capture_deleted, capture_rejections, partitions, retention
from postrider.store.database import Busy, Connection, Database, DatabaseError, DatabaseUnavailable
from postrider.store.partitions import PARTITIONED, Partitioned
from postrider.store.retention import Sweep

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Retention:
    """Seconds that rows are kept after their event, in whole days; the longer time wins at a partition."""

    events: float
    attempts: float


@dataclass(frozen=True, slots=True)
class PartitionTuning:
    interval_s: float = 3600.0
    again_s: float = 1.0
    """After some were made, and more are to be."""
    back_off_s: tuple[float, ...] = (60.0, 300.0, 900.0, 3600.0)
    """Waits after a failure; the last one repeats. There are partitions for days."""
    days_ahead: int = 7
    """Each day more costs every claim about 9 µs of PostgreSQL's time, every refill of a lane 15."""
    guarded_ahead: int = 3
    """Days. While the default partition is guarded, it refuses events of the days that get partitions beside
    it, so these lie so far ahead that a daemon that dies meanwhile can be started again, and lift the
    guard."""
    created_at_a_time: int = 6
    lock_ms: int = 500
    validate_lock_ms: int = 10_000
    """Nobody waits behind the one who validates."""
    sweep_pause_s: float = 0.02
    most_told: int = 10


@dataclass(frozen=True, slots=True)
class PartitionCounts:
    created: int
    dropped: int
    complete: bool
    """False where more can be made at once."""


@dataclass(frozen=True, slots=True)
class Created:
    names: list[str]
    complete: bool
    """False where more can be made at once."""


@dataclass(frozen=True, slots=True)
class Dropped:
    names: list[str]
    kept: list[str]
    """Past retention, but with deliveries that are not settled."""
    holders: list[int]
    """Some endpoints that these deliveries wait for, because a person paused them."""
    ended: int
    """Deliveries that failed because their endpoint is disabled and retention ended."""


class PartitionKeeper:
    def __init__(
        self,
        *,
        database: Database,
        retention: Retention,
        clock: Clock,
        tuning: PartitionTuning | None = None,
    ) -> None:
        self._database = database
        self._retention = retention
        self._clock = clock
        self._tuning = tuning or PartitionTuning()
        self._failures = 0
        """In a row."""

    def __repr__(self) -> str:
        days = self._retention.events / 86_400
        return f"<PartitionKeeper keeps events for {days:.0f} days, failures={self._failures}>"

    def configure(self, retention: Retention) -> None:
        """Take over what a new configuration says; it counts from the next run on."""
        self._retention = retention

    async def run(self) -> None:
        tuning = self._tuning
        while True:
            try:
                counts = await self.run_once()
            except DatabaseUnavailable:
                raise
            except (Busy, DatabaseError) as error:
                wait = tuning.back_off_s[min(self._failures, len(tuning.back_off_s) - 1)]
                self._failures += 1
                log.warning("partitions.postponed", reason=str(error), again_in_s=wait)
            else:
                self._failures = 0
                wait = tuning.interval_s if counts.complete else tuning.again_s
            await self._clock.sleep(wait)

    async def run_once(self) -> PartitionCounts:
        """Make partitions ahead, and drop old ones once all are made. Raises Busy, DatabaseError."""
        created = await self.create_ahead()
        if created.names:
            log.info("partitions.created", partitions=created.names)
        if not created.complete:
            return PartitionCounts(len(created.names), 0, False)
        now = self._clock.now()
        async with self._database.connection() as connection:
            await capture_rejections.forget(connection, now - timedelta(seconds=self._retention.events))
            await capture_deleted.forget(connection)
        dropped = 0
        for parent in PARTITIONED:
            seconds = self._retention.attempts if parent == "attempt" else self._retention.events
            result = await self.drop_before(parent, timedelta(seconds=seconds))
            _tell(result)
            dropped += len(result.names)
        return PartitionCounts(len(created.names), dropped, True)

    async def create_ahead(self) -> Created:
        """Make the partitions of today and the next days, the nearest first, a few at a time.

        Raises Busy. A day stays without one where its rows already went to the default partition.
        """
        tuning = self._tuning
        async with self._database.connection() as connection:
            existing = await partitions.days(connection)
            guarded = await partitions.guarded(connection)
        for parent in guarded:
            await self._unguard(parent)
        today = existing["outbox"].today
        missing = [
            (parent, day)
            for day in (today + timedelta(days=ahead) for ahead in range(tuning.days_ahead + 1))
            for parent in PARTITIONED
            if day not in existing[parent].made
        ]
        created: list[str] = []
        crowded: set[Partitioned] = set()
        for parent, day in missing:
            if len(created) == tuning.created_at_a_time:
                return Created(created, False)
            if await self._create(parent, day):
                created.append(partitions.name_of(parent, day))
            elif parent not in crowded and not await self._may_attach(parent, day):
                crowded.add(parent)
        first = today + timedelta(days=tuning.guarded_ahead)
        for parent in crowded:
            created += await self._create_beside(
                parent, [day for of, day in missing if of == parent and day >= first]
            )
        return Created(created, True)

    async def drop_before(self, parent: Partitioned, keep: timedelta) -> Dropped:
        """Drop the partitions of days that ended longer than `keep` ago. Raises Busy.

        What waits for disabled endpoints fails then; what waits for a paused one keeps its partition.
        """
        async with self._database.connection() as connection:
            existing = (await partitions.days(connection))[parent]
        first = existing.today - timedelta(days=keep.days)
        ended = 0
        if parent != "attempt":
            ended = await self._end_disabled(first, "waiting") + await self._end_disabled(first, "retrying")
        dropped, kept = [], []
        holders: set[int] = set()
        for day in [day for day in existing.made if day < first]:
            if parent != "attempt" and (waits_for := await self._unsettled(day)) is not None:
                kept.append(partitions.name_of(parent, day))
                holders.update(waits_for)
                continue
            async with self._change("drop_partition", parent) as connection:
                await partitions.drop(connection, parent, day)
            dropped.append(partitions.name_of(parent, day))
        await self._sweep(parent, first)
        if parent == "outbox":
            await self._sweep("idempotency", first)
            await self._sweep("disabled_period", first)
        return Dropped(dropped, kept, sorted(holders)[: self._tuning.most_told], ended)

    async def _create(self, parent: Partitioned, day: date) -> bool:
        async with self._change("create_partition", parent) as connection:
            return await partitions.create(connection, parent, day)

    async def _may_attach(self, parent: Partitioned, day: date) -> bool:
        async with self._database.connection() as connection:
            return await partitions.may_attach(connection, parent, day)

    async def _create_beside(self, parent: Partitioned, days: Sequence[date]) -> list[str]:
        """Make partitions beside a large default partition, once it is proven to hold none of their days."""
        if not days:
            return []
        async with self._database.connection() as connection:
            first = await partitions.empty_from(connection, parent, days)
        if first is None:
            return []
        lock_ms = self._tuning.validate_lock_ms
        try:
            async with self._change("guard_default", parent) as connection:
                await partitions.guard_default(connection, parent, first, days[-1] + timedelta(days=1))
            async with self._change("validate_default", parent, lock_ms) as connection:
                await partitions.validate_default(connection, parent)
            async with self._change("create_unguarded", parent) as connection:
                made = await partitions.create_unguarded(
                    connection, parent, [day for day in days if day >= first]
                )
        except BaseException:
            await self._unguard(parent)
            raise
        return [partitions.name_of(parent, day) for day in made]

    async def _unguard(self, parent: Partitioned) -> None:
        async with self._change("unguard_default", parent) as connection:
            await partitions.unguard_default(connection, parent)

    async def _unsettled(self, day: date) -> list[int] | None:
        """Some endpoints for which deliveries of the day wait; None where all of it is settled."""
        async with self._database.connection() as connection:
            if not await partitions.is_unsettled(connection, day):
                return None
            return await partitions.holders(connection, day)

    async def _end_disabled(self, before: date, state: Literal["waiting", "retrying"]) -> int:
        return await self._repeat(lambda connection: retention.end_disabled(connection, before, state))

    async def _sweep(self, what: Sweep, before: date) -> int:
        return await self._repeat(lambda connection: retention.sweep(connection, what, before))

    async def _repeat(self, step: Callable[[Connection], Awaitable[int]]) -> int:
        """Repeat a step that changes a bounded number of rows, each time in a transaction of its own, until
        there are none left; return how many there were."""
        total = 0
        while True:
            async with self._database.connection() as connection:
                rows = await step(connection)
            total += rows
            if rows < retention.ROWS:
                return total
            await self._clock.sleep(self._tuning.sweep_pause_s)

    def _change(
        self, call: str, parent: Partitioned, lock_ms: int | None = None
    ) -> AbstractAsyncContextManager[Connection]:
        return self._database.brief_transaction(f"{call} of {parent}", lock_ms or self._tuning.lock_ms)


def _tell(result: Dropped) -> None:
    if result.ended:
        log.warning(
            "deliveries.ended",
            deliveries=result.ended,
            reason="their endpoints are disabled, and the retention of their events ended",
        )
    if result.kept:
        log.warning(
            "partitions.kept",
            partitions=result.kept,
            endpoints=[endpoint_public_id(endpoint_id) for endpoint_id in result.holders],
            reason="they hold deliveries that are not settled",
        )
    if result.names:
        log.info("partitions.dropped", partitions=result.names)

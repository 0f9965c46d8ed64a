"""Daily partitions of outbox, delivery and attempt: make them ahead, drop them when retention ends.

Days go by the database's clock. Every change waits for its lock only for a moment, because the CRM's writers
wait behind it, and is given up where it does not get it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import count
from typing import Literal, get_args

import asyncpg

from postrider.store.database import Database

Partitioned = Literal["outbox", "delivery", "attempt"]
PARTITIONED: tuple[Partitioned, ...] = get_args(Partitioned)
DAYS_AHEAD = 7
"""Each day more costs every claim about 9 µs of PostgreSQL's time, every refill of a lane 15."""
GUARDED_AHEAD = 3
"""Days. While the default partition is guarded, it refuses events of the days that get partitions beside it,
so these lie so far ahead that a daemon that dies meanwhile can be started again, and lift the guard."""
CREATED_AT_A_TIME = 6
LOCK_MS = 500
VALIDATE_LOCK_MS = 10_000
"""Nobody waits behind the one who validates."""
DDL_TIMEOUT_S = 86_400.0
"""Looking through a large default partition may take its time; giving up would only begin it again."""
SWEEP_ROWS = 2_000
SWEEP_PAUSE_S = 0.02
MAX_TOLD = 10

_LOOK = """
SELECT parent, (clock_timestamp() AT TIME ZONE 'UTC')::date AS today,
       ARRAY(SELECT postrider.partition_days(parent)) AS days
FROM unnest($1::text[]) AS parent
"""

# The first day from which on the default partition holds nothing.
_EMPTY_FROM = """
SELECT min(day)::date FROM generate_series($1::date::timestamp, $2::date::timestamp, '1 day') AS day
WHERE NOT EXISTS (SELECT FROM postrider.{parent}_default WHERE {key} >= postrider.first_id_of(day::date))
"""

_GUARDED = """
SELECT substr(r.relname, 1, length(r.relname) - length('_default')) AS parent,
  split_part(obj_description(c.oid, 'pg_constraint'), ' ', 1)::date AS first
FROM pg_constraint AS c JOIN pg_class AS r ON r.oid = c.conrelid
WHERE c.conname = 'postrider_days_elsewhere'
  AND r.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'postrider')
"""

_OF_DAY = "event_id >= postrider.first_id_of($1) AND event_id < postrider.first_id_of($1 + 1)"
# Each state has an index of its own, which holds nothing else.
_UNSETTLED = f"""
SELECT EXISTS (SELECT FROM postrider.pending WHERE {_OF_DAY})
    OR EXISTS (SELECT FROM postrider.claim, unnest(event_ids) AS claimed (event_id) WHERE {_OF_DAY})
    OR EXISTS (SELECT FROM postrider.delivery WHERE {_OF_DAY} AND state = 'waiting')
    OR EXISTS (SELECT FROM postrider.delivery WHERE {_OF_DAY} AND state = 'sending')
    OR EXISTS (SELECT FROM postrider.delivery WHERE {_OF_DAY} AND state = 'retrying')
"""  # noqa: S608 (constant)

_HOLDERS = f"""
SELECT e.id FROM postrider.endpoint AS e WHERE e.state <> 'active' AND EXISTS (
  SELECT FROM postrider.delivery AS d WHERE d.endpoint_id = e.id AND d.state = 'waiting' AND {_OF_DAY}
) ORDER BY e.id LIMIT {MAX_TOLD}
"""  # noqa: S608 (constant)

# A disabled endpoint gets nothing until a person resumes it; whoever paused one asked to keep its deliveries.
_END_DISABLED = f"""
WITH ended AS (
  SELECT d.event_id, d.endpoint_id, d.workspace_id, e.updated_at AS since
  FROM postrider.endpoint AS e CROSS JOIN LATERAL (
    SELECT event_id, endpoint_id, workspace_id FROM postrider.delivery
    WHERE endpoint_id = e.id AND state = $2 AND event_id < postrider.first_id_of($1)
    LIMIT {SWEEP_ROWS} FOR UPDATE SKIP LOCKED
  ) AS d
  WHERE e.state = 'disabled' LIMIT {SWEEP_ROWS}
)
UPDATE postrider.delivery AS d SET state = 'failed', due = NULL, updated_at = clock_timestamp(),
  reason = 'its endpoint has been disabled since ' || to_char(ended.since AT TIME ZONE 'UTC', 'YYYY-MM-DD')
           || ', and the retention of its event ended'
FROM ended WHERE d.event_id = ended.event_id AND d.endpoint_id = ended.endpoint_id
  AND d.workspace_id = ended.workspace_id
"""  # noqa: S608 (constant)

# Days without a partition went to the default one, where rows have to be deleted one by one.
_SWEEP_DEFAULT: dict[Partitioned, str] = {
    "outbox": f"""
        DELETE FROM postrider.outbox_default WHERE ctid = ANY (ARRAY(
          SELECT o.ctid FROM postrider.outbox_default AS o WHERE o.id < postrider.first_id_of($1)
            AND NOT EXISTS (SELECT FROM postrider.pending AS p WHERE p.event_id = o.id)
            AND NOT EXISTS (SELECT FROM postrider.claim AS c WHERE o.id = ANY(c.event_ids))
            AND NOT EXISTS (SELECT FROM postrider.delivery AS d WHERE d.event_id = o.id
                            AND d.state IN ('waiting', 'sending', 'retrying'))
          LIMIT {SWEEP_ROWS}))""",  # noqa: S608 (constant)
    # An event that is kept for one endpoint must not look as if another had missed it.
    "delivery": f"""
        DELETE FROM postrider.delivery_default WHERE ctid = ANY (ARRAY(
          SELECT d.ctid FROM postrider.delivery_default AS d WHERE d.event_id < postrider.first_id_of($1)
            AND d.state NOT IN ('waiting', 'sending', 'retrying')
            AND NOT EXISTS (SELECT FROM postrider.outbox AS o
                            WHERE o.id = d.event_id AND o.id < postrider.first_id_of($1))
          LIMIT {SWEEP_ROWS}))""",  # noqa: S608 (constant)
    "attempt": f"""
        DELETE FROM postrider.attempt_default WHERE ctid = ANY (ARRAY(
          SELECT ctid FROM postrider.attempt_default WHERE event_id < postrider.first_id_of($1)
          LIMIT {SWEEP_ROWS}))""",  # noqa: S608 (constant)
}
_FORGET_KEYS = f"""
DELETE FROM postrider.idempotency WHERE ctid = ANY (ARRAY(
  SELECT ctid FROM postrider.idempotency WHERE event_id < postrider.first_id_of($1) LIMIT {SWEEP_ROWS}))
"""  # noqa: S608 (constant)
_FORGET_PERIODS = f"""
DELETE FROM postrider.disabled_period WHERE ctid = ANY (ARRAY(
  SELECT ctid FROM postrider.disabled_period WHERE last_event < postrider.first_id_of($1) LIMIT {SWEEP_ROWS}))
"""  # noqa: S608 (constant)


class Busy(Exception):
    """A lock was not to be had in the time that others may wait behind it."""


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


class Partitions:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def guarded(self) -> dict[str, date]:
        """The tables whose default partition is guarded at the moment, or since a daemon died meanwhile, and
        the first day that it refuses."""
        async with self._database.connection() as connection:
            return {row["parent"]: row["first"] for row in await connection.fetch(_GUARDED)}

    async def days_ahead(self) -> dict[Partitioned, int]:
        """For how many days after today, without a gap, each table has a partition."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_LOOK, list(PARTITIONED))
        return {
            row["parent"]: next(
                ahead for ahead in count() if row["today"] + timedelta(days=ahead + 1) not in row["days"]
            )
            for row in rows
        }

    async def create_ahead(self) -> Created:
        """Make the partitions of today and the next days, the nearest first, a few at a time.

        Raises Busy. A day stays without one where its rows already went to the default partition.
        """
        async with self._database.connection() as connection:
            rows = {row["parent"]: row for row in await connection.fetch(_LOOK, list(PARTITIONED))}
        for parent in await self.guarded():
            await self._change("unguard_default($1)", parent)
        today = rows["outbox"]["today"]
        missing = [
            (parent, day)
            for day in (today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1))
            for parent in PARTITIONED
            if day not in rows[parent]["days"]
        ]
        created: list[str] = []
        crowded: set[Partitioned] = set()
        for parent, day in missing:
            if len(created) == CREATED_AT_A_TIME:
                return Created(created, False)
            if await self._create(parent, day):
                created.append(_name(parent, day))
            elif parent not in crowded and not await self._may_attach(parent, day):
                crowded.add(parent)
        for parent in crowded:
            created += await self._create_beside(
                parent,
                [day for of, day in missing if of == parent and day >= today + timedelta(GUARDED_AHEAD)],
            )
        return Created(created, True)

    async def _create_beside(self, parent: Partitioned, days: Sequence[date]) -> list[str]:
        """Make partitions beside a large default partition, once it is proven to hold none of their days."""
        key = "id" if parent == "outbox" else "event_id"
        if not days:
            return []
        async with self._database.connection() as connection:
            first: date | None = await connection.fetchval(
                _EMPTY_FROM.format(parent=parent, key=key), days[0], days[-1]
            )
        if first is None:
            return []
        try:
            await self._change("guard_default($1, $2, $3)", parent, first, days[-1] + timedelta(days=1))
            await self._change("validate_default($1)", parent, lock_ms=VALIDATE_LOCK_MS)
            empty = [day for day in days if day >= first]
            made = await self._change("create_unguarded($1, $2)", parent, empty)
        except BaseException:
            await self._change("unguard_default($1)", parent)
            raise
        assert isinstance(made, list)
        return [_name(parent, day) for day in made]

    async def drop_before(self, parent: Partitioned, keep: timedelta) -> Dropped:
        """Drop the partitions of days that ended longer than `keep` ago. Raises Busy.

        What waits for disabled endpoints fails then; what waits for a paused one keeps its partition.
        """
        dropped, kept, ended = [], [], 0
        holders: set[int] = set()
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_LOOK, [parent])
        assert row is not None
        first = row["today"] - timedelta(days=keep.days)
        if parent != "attempt":
            ended += await self._sweep(_END_DISABLED, first, "waiting")
            ended += await self._sweep(_END_DISABLED, first, "retrying")
        for day in [day for day in row["days"] if day < first]:
            if parent != "attempt":
                async with self._database.connection() as connection:
                    if await connection.fetchval(_UNSETTLED, day):
                        kept.append(_name(parent, day))
                        holders.update(row["id"] for row in await connection.fetch(_HOLDERS, day))
                        continue
            await self._change("drop_partition($1, $2)", parent, day)
            dropped.append(_name(parent, day))
        await self._sweep(_SWEEP_DEFAULT[parent], first)
        if parent == "outbox":
            await self._sweep(_FORGET_KEYS, first)
            await self._sweep(_FORGET_PERIODS, first)
        return Dropped(dropped, kept, sorted(holders)[:MAX_TOLD], ended)

    async def _create(self, parent: Partitioned, day: date) -> bool:
        return bool(await self._change("create_partition($1, $2)", parent, day))

    async def _may_attach(self, parent: Partitioned, day: date) -> bool:
        async with self._database.connection() as connection:
            may: bool = await connection.fetchval("SELECT postrider.may_attach($1, $2)", parent, day)
        return may

    async def _change(self, call: str, *arguments: object, lock_ms: int = LOCK_MS) -> object:
        """Call a function that needs a lock, in a transaction of its own.

        Raises Busy where it would keep writers waiting for too long.
        """
        try:
            async with self._database.transaction() as connection:
                await connection.execute(f"SET LOCAL lock_timeout = {lock_ms}")
                return await connection.fetchval(
                    f"SELECT postrider.{call}",
                    *arguments,
                    timeout=DDL_TIMEOUT_S,
                )
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            raise Busy(f"{call.partition('(')[0]} of {arguments[0]}: {error}") from error

    async def _sweep(self, statement: str, *arguments: object) -> int:
        """Repeat a statement that changes a bounded number of rows, each time in a transaction of its own,
        until there are none left; return how many there were."""
        total = 0
        while True:
            async with self._database.connection() as connection:
                swept = int((await connection.execute(statement, *arguments)).rsplit(" ", 1)[1])
            total += swept
            if swept < SWEEP_ROWS:
                return total
            await asyncio.sleep(SWEEP_PAUSE_S)


def _name(parent: Partitioned, day: date) -> str:
    return f"{parent}_{day:%Y%m%d}"

"""Daily partitions of outbox, delivery and attempt: make them ahead, drop them when retention ends.

Days go by the database's clock. What changes partitions needs a lock behind which the CRM's writers wait: it
belongs into a brief transaction of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import count
from typing import Literal, get_args

from postrider.store.database import Connection

Partitioned = Literal["outbox", "delivery", "attempt"]
PARTITIONED: tuple[Partitioned, ...] = get_args(Partitioned)
DDL_TIMEOUT_S = 86_400.0
"""Looking through a large default partition may take its time; giving up would only begin it again."""
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
  SELECT FROM postrider.delivery AS d
  WHERE d.endpoint_id = e.id AND d.workspace_id = e.workspace_id AND d.state = 'waiting' AND {_OF_DAY}
) ORDER BY e.id LIMIT {MAX_TOLD}
"""  # noqa: S608 (constant)


@dataclass(frozen=True, slots=True)
class Days:
    today: date
    made: Sequence[date]
    """That have a partition."""

    @property
    def ahead(self) -> int:
        """For how many days after today, without a gap, there is a partition."""
        return next(ahead for ahead in count() if self.today + timedelta(days=ahead + 1) not in self.made)


def name_of(parent: Partitioned, day: date) -> str:
    return f"{parent}_{day:%Y%m%d}"


async def days(connection: Connection) -> dict[Partitioned, Days]:
    """What each table has."""
    rows = await connection.fetch(_LOOK, list(PARTITIONED))
    return {row["parent"]: Days(row["today"], row["days"]) for row in rows}


async def guarded(connection: Connection) -> dict[Partitioned, date]:
    """The tables whose default partition is guarded at the moment, or since a daemon died meanwhile, and
    the first day that it refuses."""
    return {row["parent"]: row["first"] for row in await connection.fetch(_GUARDED)}


# Making them.


async def create(connection: Connection, parent: Partitioned, day: date) -> bool:
    """Make the partition of a day; False where its rows already went to the default partition, or that is so
    large that looking for them would take too long."""
    return bool(await _call(connection, "create_partition($1, $2)", parent, day))


async def may_attach(connection: Connection, parent: Partitioned, day: date) -> bool:
    """Whether the default partition is small enough to be looked through while writers wait."""
    may: bool = await connection.fetchval("SELECT postrider.may_attach($1, $2)", parent, day)
    return may


async def empty_from(connection: Connection, parent: Partitioned, days: Sequence[date]) -> date | None:
    """The first of these days from which on the default partition holds nothing."""
    key = "id" if parent == "outbox" else "event_id"
    first: date | None = await connection.fetchval(
        _EMPTY_FROM.format(parent=parent, key=key), days[0], days[-1]
    )
    return first


async def guard_default(connection: Connection, parent: Partitioned, first: date, end: date) -> None:
    """Let the default partition refuse rows of the days from `first` to before `end`."""
    await _call(connection, "guard_default($1, $2, $3)", parent, first, end)


async def validate_default(connection: Connection, parent: Partitioned) -> None:
    """Look through the default partition, which is guarded: it holds no rows of those days."""
    await _call(connection, "validate_default($1)", parent)


async def create_unguarded(connection: Connection, parent: Partitioned, days: Sequence[date]) -> list[date]:
    """Make partitions of days that the default partition is proven not to hold, and lift its guard."""
    made = await _call(connection, "create_unguarded($1, $2)", parent, list(days))
    assert isinstance(made, list)
    return made


async def unguard_default(connection: Connection, parent: Partitioned) -> None:
    await _call(connection, "unguard_default($1)", parent)


# Dropping them.


async def is_unsettled(connection: Connection, day: date) -> bool:
    """Whether something of the day is still to be delivered."""
    unsettled: bool = await connection.fetchval(_UNSETTLED, day)
    return unsettled


async def holders(connection: Connection, day: date) -> list[int]:
    """Some endpoints that are not active, for which deliveries of the day wait."""
    return [row["id"] for row in await connection.fetch(_HOLDERS, day)]


async def drop(connection: Connection, parent: Partitioned, day: date) -> None:
    await _call(connection, "drop_partition($1, $2)", parent, day)


async def _call(connection: Connection, call: str, *arguments: object) -> object:
    return await connection.fetchval(f"SELECT postrider.{call}", *arguments, timeout=DDL_TIMEOUT_S)

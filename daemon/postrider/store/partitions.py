"""Daily partitions of outbox, delivery and attempt: make them ahead, drop them when retention ends."""

from datetime import date, datetime, timedelta
from typing import Literal, get_args

import asyncpg

from postrider.store.database import Connection, Database

Partitioned = Literal["outbox", "delivery", "attempt"]
PARTITIONED: tuple[Partitioned, ...] = get_args(Partitioned)
DAYS_AHEAD = 3

_UNSETTLED = """
SELECT EXISTS (SELECT FROM postrider.pending
               WHERE event_id >= postrider.first_id_of($1) AND event_id < postrider.first_id_of($1 + 1))
    OR EXISTS (SELECT FROM postrider.claim, unnest(event_ids) AS claimed (event_id)
               WHERE event_id >= postrider.first_id_of($1) AND event_id < postrider.first_id_of($1 + 1))
    OR EXISTS (SELECT FROM postrider.delivery
               WHERE event_id >= postrider.first_id_of($1) AND event_id < postrider.first_id_of($1 + 1)
                 AND state IN ('waiting', 'sending', 'retrying'))
"""

# Days without a partition went to the default one, where rows have to be deleted one by one.
_SWEEP_DEFAULT: dict[Partitioned, str] = {
    "outbox": """
        DELETE FROM postrider.outbox_default AS o WHERE o.id < postrider.first_id_of($1)
          AND NOT EXISTS (SELECT FROM postrider.pending AS p WHERE p.event_id = o.id)
          AND NOT EXISTS (SELECT FROM postrider.claim AS c WHERE o.id = ANY(c.event_ids))
          AND NOT EXISTS (SELECT FROM postrider.delivery AS d WHERE d.event_id = o.id
                          AND d.state IN ('waiting', 'sending', 'retrying'))""",
    "delivery": """
        DELETE FROM postrider.delivery_default WHERE event_id < postrider.first_id_of($1)
          AND state NOT IN ('waiting', 'sending', 'retrying')""",
    "attempt": "DELETE FROM postrider.attempt_default WHERE event_id < postrider.first_id_of($1)",
}


class Partitions:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_ahead(self, now: datetime) -> list[str]:
        """Make the partitions of today and the next days; return the names of the new ones."""
        created = []
        async with self._database.connection() as connection:
            for parent in PARTITIONED:
                for ahead in range(DAYS_AHEAD + 1):
                    day = now.date() + timedelta(days=ahead)
                    if await self._impatiently(connection, "create_partition", parent, day):
                        created.append(f"{parent}_{day:%Y%m%d}")
        return created

    async def drop_before(self, parent: Partitioned, day: date) -> tuple[list[str], list[str]]:
        """Drop the partitions of days before `day`; return (dropped, kept).

        Kept are those with deliveries that are not settled, such as those of a paused endpoint.
        """
        dropped, kept = [], []
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT postrider.partition_days($1) AS day", parent)
            for old in [row["day"] for row in rows if row["day"] < day]:
                name = f"{parent}_{old:%Y%m%d}"
                if parent != "attempt" and await connection.fetchval(_UNSETTLED, old):
                    kept.append(name)
                elif await self._impatiently(connection, "drop_partition", parent, old) is not None:
                    dropped.append(name)
            await connection.execute(_SWEEP_DEFAULT[parent], day)
            if parent == "outbox":
                await connection.execute(
                    "DELETE FROM postrider.idempotency WHERE event_id < postrider.first_id_of($1)", day
                )
        return dropped, kept

    @staticmethod
    async def _impatiently(
        connection: Connection, function: str, parent: Partitioned, day: date
    ) -> object | None:
        """Call a partition function unless a lock would keep the CRM's writers waiting; None if it would."""
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '250ms'")
                result = await connection.fetchval(f"SELECT postrider.{function}($1, $2)", parent, day)
                return result if result is not None else True
        except asyncpg.LockNotAvailableError:
            return None

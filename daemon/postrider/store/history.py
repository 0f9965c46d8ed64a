"""Deliveries as people see them: list, show, retry."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from postrider.domain.model import Attempt, ErrorKind, Failure, Reply
from postrider.store.database import Database
from postrider.store.deliveries import DeliveryKey
from postrider.store.delivery_search import (
    EVENT_OF,
    SHOWN,
    STATUS_OF,
    DeliveryFilter,
    DeliveryRow,
    Found,
    delivery_row,
    search,
)

_GET = SHOWN.format(f"""
  SELECT d.*, o.event_type, o.test, s.http_status FROM postrider.delivery AS d
  LEFT JOIN LATERAL ({EVENT_OF}) AS o ON true CROSS JOIN LATERAL ({STATUS_OF}) AS s
  WHERE d.event_id = $1 AND d.endpoint_id = $2""")  # noqa: S608 (constants)

# An attempt that succeeded makes room for the next one. A test is for the moment in which a person asks.
_RETRY = """
WITH chosen AS (
  SELECT d.* FROM postrider.delivery AS d
  JOIN (SELECT unnest($1::uuid[]) AS event_id, unnest($2::bigint[]) AS endpoint_id) AS r
    USING (event_id, endpoint_id)
  JOIN postrider.endpoint AS e ON e.id = d.endpoint_id AND e.state <> 'deleted'
  WHERE d.state IN ('failed', 'retrying', 'succeeded', 'cancelled')
    AND EXISTS (SELECT FROM postrider.outbox AS o WHERE o.id = d.event_id AND NOT o.test)
  FOR UPDATE OF d
), earlier AS (
  INSERT INTO postrider.attempt (event_id, endpoint_id, workspace_id, number, started_at, duration_ms,
                                 connect_ms, status, response_headers, response_body)
  SELECT event_id, endpoint_id, workspace_id, attempts, started_at, duration_ms, connect_ms, status,
         response_headers, response_body
  FROM chosen WHERE started_at IS NOT NULL ON CONFLICT DO NOTHING
)
UPDATE postrider.delivery AS d
SET state = 'waiting', due = NULL, attempt_base = d.attempts, started_at = NULL, duration_ms = NULL,
    connect_ms = NULL, status = NULL, response_headers = NULL, response_body = NULL, updated_at = $3
FROM chosen
WHERE d.event_id = chosen.event_id AND d.endpoint_id = chosen.endpoint_id
RETURNING d.event_id, d.endpoint_id
"""


class DeliveryHistory:
    """Reads deliveries for people, and does what people ask of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def search(
        self, chosen: DeliveryFilter, *, before: DeliveryKey | None = None, limit: int = 50
    ) -> Found:
        """Newest event first; `before` is the last delivery of the previous page."""
        return await search(self._database, chosen, after=before, newest_first=True, limit=limit)

    async def list_deliveries(self, *, event_id: UUID, limit: int = 50) -> list[DeliveryRow]:
        """The deliveries of an event."""
        return (await self.search(DeliveryFilter(event_id=event_id), limit=limit)).rows

    async def batches(self, chosen: DeliveryFilter, size: int) -> AsyncIterator[list[DeliveryKey]]:
        """The deliveries of a filter, all of them, oldest event first, in batches of at most `size`."""
        after: DeliveryKey | None = None
        while True:
            found = await search(self._database, chosen, after=after, newest_first=False, limit=size)
            keys = [(row.event_id, row.endpoint_id) for row in found.rows]
            if keys:
                yield keys
            if len(keys) < size and found.looked_to is None:
                return
            after = found.looked_to or keys[-1]

    async def get(self, key: DeliveryKey) -> DeliveryRow | None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_GET, *key)
        return delivery_row(row) if row else None

    async def attempts(self, key: DeliveryKey) -> list[Attempt]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT * FROM postrider.every_attempt WHERE event_id = $1 AND endpoint_id = $2
                   ORDER BY number""",
                *key,
            )
        return [_attempt(row) for row in rows]

    async def retry(self, keys: Sequence[DeliveryKey], now: datetime) -> list[DeliveryKey]:
        """Send again, with a whole new schedule; return those that could be queued.

        A delivery that is being sent, or that waits already, is left as it is, and so is a test.
        """
        async with self._database.transaction() as connection:
            rows = await connection.fetch(
                _RETRY,
                [event_id for event_id, _ in keys],
                [endpoint_id for _, endpoint_id in keys],
                now,
            )
            await connection.execute("SELECT pg_notify('postrider_deliveries', '')")
        return [(row["event_id"], row["endpoint_id"]) for row in rows]


def _attempt(row: asyncpg.Record) -> Attempt:
    result: Reply | Failure
    if row["status"] is not None:
        result = Reply(
            status=row["status"],
            headers=row["response_headers"] or "",
            body=row["response_body"] or "",
            retry_after=None,
            connect_ms=row["connect_ms"],
            duration_ms=row["duration_ms"],
        )
    else:
        result = Failure(
            kind=ErrorKind(row["error_kind"]),
            reason=row["error"] or "",
            duration_ms=row["duration_ms"],
            connect_ms=row["connect_ms"],
        )
    return Attempt(number=row["number"], started_at=row["started_at"], result=result)

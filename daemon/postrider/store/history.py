"""Deliveries as people see them: list, show, retry."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from postrider.domain.model import Attempt, DeliveryState, ErrorKind, Failure, Reply
from postrider.store.database import Database
from postrider.store.deliveries import DeliveryKey


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A delivery as people see it."""

    event_id: UUID
    endpoint_id: int
    workspace_id: str
    event_type: str | None
    state: DeliveryState
    attempts: int
    due: datetime | None
    updated_at: datetime
    reason: str | None


_ROW_COLUMNS = """
  d.event_id, d.endpoint_id, d.workspace_id,
  (SELECT o.type FROM postrider.outbox AS o WHERE o.id = d.event_id) AS event_type,
  d.state, d.attempts, d.due, d.updated_at, d.reason
"""


# An attempt that succeeded makes room for the next one.
_RETRY = """
WITH chosen AS (
  SELECT d.* FROM postrider.delivery AS d
  JOIN (SELECT unnest($1::uuid[]) AS event_id, unnest($2::bigint[]) AS endpoint_id) AS r
    USING (event_id, endpoint_id)
  JOIN postrider.endpoint AS e ON e.id = d.endpoint_id AND e.state <> 'deleted'
  WHERE d.state IN ('failed', 'retrying', 'succeeded', 'cancelled')
    AND EXISTS (SELECT FROM postrider.outbox AS o WHERE o.id = d.event_id)
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

    async def list_deliveries(
        self,
        *,
        endpoint_id: int | None = None,
        event_id: UUID | None = None,
        state: DeliveryState | None = None,
        before: DeliveryKey | None = None,
        limit: int = 50,
    ) -> list[DeliveryRow]:
        """Newest event first; `before` is the last delivery of the previous page."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""SELECT {_ROW_COLUMNS} FROM postrider.delivery AS d
                    WHERE ($1::bigint IS NULL OR d.endpoint_id = $1) AND ($2::uuid IS NULL OR d.event_id = $2)
                      AND ($3::text IS NULL OR d.state = $3)
                      AND ($4::uuid IS NULL OR (d.event_id, d.endpoint_id) < ($4, $5::bigint))
                    ORDER BY d.event_id DESC, d.endpoint_id DESC LIMIT $6""",  # noqa: S608 (constant)
                endpoint_id,
                event_id,
                state.value if state else None,
                *(before or (None, None)),
                limit,
            )
        return [_delivery_row(row) for row in rows]

    async def keys(self, endpoint_id: int, state: DeliveryState) -> list[DeliveryKey]:
        """Deliveries of an endpoint in a state, oldest event first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT event_id, endpoint_id FROM postrider.delivery
                   WHERE endpoint_id = $1 AND state = $2 ORDER BY event_id""",
                endpoint_id,
                state.value,
            )
        return [(row["event_id"], row["endpoint_id"]) for row in rows]

    async def get(self, key: DeliveryKey) -> DeliveryRow | None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"""SELECT {_ROW_COLUMNS} FROM postrider.delivery AS d
                    WHERE d.event_id = $1 AND d.endpoint_id = $2""",  # noqa: S608 (constant)
                *key,
            )
        return _delivery_row(row) if row else None

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

        A delivery that is being sent, or that waits already, is left as it is.
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

    async def counts(self, since: datetime) -> dict[DeliveryState, int]:
        """Deliveries by state whose last change is not older than `since`."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT state, count(*) AS n FROM postrider.delivery WHERE updated_at >= $1 GROUP BY state",
                since,
            )
        return {DeliveryState(row["state"]): row["n"] for row in rows}


def _delivery_row(row: asyncpg.Record) -> DeliveryRow:
    return DeliveryRow(
        event_id=row["event_id"],
        endpoint_id=row["endpoint_id"],
        workspace_id=row["workspace_id"],
        event_type=row["event_type"],
        state=DeliveryState(row["state"]),
        attempts=row["attempts"],
        due=row["due"],
        updated_at=row["updated_at"],
        reason=row["reason"],
    )


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

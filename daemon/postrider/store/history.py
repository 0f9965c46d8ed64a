"""One delivery as people see it, with its attempts; and what people do to deliveries: send them again, or not
at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from postrider.domain.audit import Scope
from postrider.domain.lists import DeliveryRow
from postrider.domain.model import Attempt, DeliveryKey, DeliveryState, ErrorKind, Failure, Reply
from postrider.store.database import Connection
from postrider.store.delivery_search import EVENT_OF, SHOWN, STATUS_OF, delivery_row
from postrider.store.statement import Statement

_GET = f"""
  SELECT d.*, o.event_type, o.test, s.http_status FROM postrider.delivery AS d
  LEFT JOIN LATERAL ({EVENT_OF}) AS o ON true CROSS JOIN LATERAL ({STATUS_OF}) AS s
  WHERE d.event_id = $1 AND d.endpoint_id = $2 AND """  # noqa: S608 (constants)

# An attempt that succeeded makes room for the next one. A test is for the moment in which a person asks.
_RETRY = """
WITH chosen AS (
  SELECT d.* FROM postrider.delivery AS d
  JOIN (SELECT unnest($1::uuid[]) AS event_id, unnest($2::bigint[]) AS endpoint_id) AS r
    USING (event_id, endpoint_id)
  JOIN postrider.endpoint AS e
    ON e.id = d.endpoint_id AND e.workspace_id = d.workspace_id AND e.state <> 'deleted'
  WHERE {where} AND d.state IN ('failed', 'retrying', 'succeeded', 'cancelled')
    AND EXISTS (SELECT FROM postrider.outbox AS o
                WHERE o.id = d.event_id AND o.workspace_id = d.workspace_id AND NOT o.test)
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
  AND d.workspace_id = chosen.workspace_id
RETURNING d.event_id, d.endpoint_id, d.workspace_id, chosen.state AS was
"""


# A daemon that claims it at this moment, or has done so, makes it one that is being sent: it is left alone.
_CANCEL = """
WITH chosen AS (
  SELECT state FROM postrider.delivery
  WHERE event_id = $1 AND endpoint_id = $2 AND workspace_id = $4 AND state IN ('waiting', 'retrying')
  FOR UPDATE
)
UPDATE postrider.delivery AS d
SET state = 'cancelled', due = NULL, reason = 'a person cancelled it', updated_at = $3
FROM chosen
WHERE d.event_id = $1 AND d.endpoint_id = $2 AND d.workspace_id = $4
RETURNING chosen.state AS was
"""


@dataclass(frozen=True, slots=True)
class Requeued:
    """A delivery that is to be sent again."""

    key: DeliveryKey
    workspace_id: str
    was: DeliveryState


async def get(connection: Connection, scope: Scope, key: DeliveryKey) -> DeliveryRow | None:
    made = Statement(*key)
    made.keep_to(scope, "d.workspace_id")
    row = await connection.fetchrow(SHOWN.format(_GET + made.where), *made.parameters)
    return delivery_row(row) if row else None


async def attempts(connection: Connection, workspace_id: str, key: DeliveryKey) -> list[Attempt]:
    rows = await connection.fetch(
        """SELECT * FROM postrider.every_attempt
           WHERE event_id = $1 AND endpoint_id = $2 AND workspace_id = $3 ORDER BY number""",
        *key,
        workspace_id,
    )
    return [_attempt(row) for row in rows]


async def retry(
    connection: Connection, scope: Scope, keys: Sequence[DeliveryKey], now: datetime
) -> list[Requeued]:
    """Send again, with a whole new schedule; return those that could be queued.

    A delivery that is being sent, or that waits already, is left as it is, and so is a test.
    """
    made = Statement([event_id for event_id, _ in keys], [endpoint_id for _, endpoint_id in keys], now)
    made.keep_to(scope, "d.workspace_id")
    rows = await connection.fetch(_RETRY.format(where=made.where), *made.parameters)
    await connection.execute("SELECT pg_notify('postrider_deliveries', '')")
    return [
        Requeued((row["event_id"], row["endpoint_id"]), row["workspace_id"], DeliveryState(row["was"]))
        for row in rows
    ]


async def cancel(
    connection: Connection, workspace_id: str, key: DeliveryKey, now: datetime
) -> DeliveryState | None:
    """Cancel a delivery that waits, or is to be retried; return which it did, None if neither."""
    was: str | None = await connection.fetchval(_CANCEL, *key, now, workspace_id)
    return None if was is None else DeliveryState(was)


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

"""The deliveries of one endpoint, as acts on the endpoint change them: what waits is counted, what a deleted
one left is cancelled, and what it missed is made to wait."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from postrider.store.database import Connection
from postrider.store.outbox import UNREADABLE

# By state, so that each is found by the index of that state. $3: how many at most.
COUNT = """
SELECT (SELECT count(*) FROM postrider.delivery
        WHERE state = 'waiting' AND endpoint_id = $1 AND workspace_id = $2)
     + (SELECT count(*) FROM postrider.delivery
        WHERE state = 'retrying' AND endpoint_id = $1 AND workspace_id = $2)
"""
_CANCEL = """
WITH chosen AS (
  SELECT d.event_id, d.endpoint_id, d.workspace_id FROM postrider.delivery AS d
  WHERE d.state = '{state}' AND d.endpoint_id = $1 AND EXISTS (
    SELECT FROM postrider.endpoint AS e
    WHERE e.id = d.endpoint_id AND e.workspace_id = d.workspace_id AND e.state = 'deleted')
  {order} LIMIT $3 FOR UPDATE
)
UPDATE postrider.delivery AS d
SET state = 'cancelled', due = NULL, reason = 'the endpoint was deleted', updated_at = $2
FROM chosen AS c
WHERE d.event_id = c.event_id AND d.endpoint_id = c.endpoint_id AND d.workspace_id = c.workspace_id
RETURNING d.event_id
"""
CANCEL_WAITING = _CANCEL.format(state="waiting", order="ORDER BY d.event_id")
CANCEL_RETRYING = _CANCEL.format(state="retrying", order="")
# $4: find out how many bytes of JSON each has.
_SEND = """
INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, updated_at, bytes)
SELECT o.id, e.id, o.workspace_id, 'waiting', $3, CASE WHEN $4 THEN
    octet_length(o.data::text) + coalesce(octet_length(o.previous_attributes::text), 0)
    + coalesce(octet_length(o.actor::text), 0) + coalesce(octet_length(o.related::text), 0) END
FROM postrider.endpoint AS e JOIN postrider.outbox AS o ON o.workspace_id = e.workspace_id
WHERE e.id = $1 AND e.workspace_id = $5 AND e.state <> 'deleted' AND o.id = ANY ($2::uuid[])
ON CONFLICT DO NOTHING RETURNING event_id
"""


async def waiting(connection: Connection, workspace_id: str, endpoint_id: int) -> int:
    """How many deliveries wait for an endpoint, retries included."""
    count: int = await connection.fetchval(COUNT, endpoint_id, workspace_id)
    return count


async def cancel_left(connection: Connection, endpoint_id: int, now: datetime, limit: int) -> int:
    """Cancel up to `limit` deliveries that wait for an endpoint if it is deleted; return how many."""
    cancelled = len(await connection.fetch(CANCEL_WAITING, endpoint_id, now, limit))
    if cancelled < limit:
        cancelled += len(await connection.fetch(CANCEL_RETRYING, endpoint_id, now, limit - cancelled))
    return cancelled


async def send(
    connection: Connection, workspace_id: str, endpoint_id: int, event_ids: Sequence[UUID], now: datetime
) -> list[UUID]:
    """Have events wait as deliveries of the endpoint; return those that had none, and that retention left."""
    try:
        async with connection.transaction():
            rows = await connection.fetch(_SEND, endpoint_id, event_ids, now, True, workspace_id)
    except UNREADABLE:
        # A row is damaged; its delivery fails for itself.
        rows = await connection.fetch(_SEND, endpoint_id, event_ids, now, False, workspace_id)
    await connection.execute("SELECT pg_notify('postrider_deliveries', '')")
    return [row["event_id"] for row in rows]

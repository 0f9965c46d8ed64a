"""Deliveries that are in the database: which of them wait, claim them, give them back, bring back retries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from postrider.domain.model import MAX_DATA_BYTES, DeliveryKey, Event, first_event_id
from postrider.store.database import Connection


@dataclass(frozen=True, slots=True)
class WaitingWanted:
    """What a lane has room for."""

    endpoint_id: int
    workspace_id: str
    room: int
    """Deliveries."""
    floor: UUID
    """Where to begin: the event of no delivery that waits for the endpoint has a smaller id."""


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    event_id: UUID
    endpoint_id: int
    workspace_id: str
    attempts: int
    attempt_base: int
    bytes: int
    """Of the event's JSON; the largest possible where that is not known."""


# $2, $9: endpoints and their workspaces; $3, $4: how many deliveries each has room for, and where to begin;
# $5: where to end, which keeps it out of the partitions made ahead; $6: bytes in all, $7: bytes for each
# endpoint, each with its first delivery excepted.
_CLAIM_WAITING = f"""
WITH found AS (
  SELECT d.* FROM (SELECT unnest($2::bigint[]) AS endpoint_id, unnest($3::integer[]) AS room,
                          unnest($4::uuid[]) AS floor, unnest($9::text[]) AS workspace_id) AS wanted
  CROSS JOIN LATERAL (
    SELECT event_id, endpoint_id, workspace_id, coalesce(bytes, {MAX_DATA_BYTES}) AS bytes
    FROM postrider.delivery
    WHERE EXISTS (SELECT FROM postrider.daemon WHERE id = $1)
      AND state = 'waiting' AND endpoint_id = wanted.endpoint_id AND workspace_id = wanted.workspace_id
      AND event_id >= wanted.floor AND event_id < $5
    ORDER BY event_id LIMIT wanted.room FOR UPDATE SKIP LOCKED
  ) AS d
), counted AS (
  SELECT *, row_number() OVER lane AS place, sum(bytes) OVER lane - bytes AS before FROM found
  WINDOW lane AS (PARTITION BY endpoint_id ORDER BY event_id)
), next AS (
  SELECT event_id, endpoint_id, workspace_id FROM (
    SELECT *, sum(bytes) OVER (ORDER BY place, bytes, endpoint_id) - bytes AS before_all
    FROM counted WHERE before < $7
  ) AS affordable WHERE before_all < $6
)
UPDATE postrider.delivery AS d SET state = 'sending', owner = $1, updated_at = $8 FROM next
WHERE d.event_id = next.event_id AND d.endpoint_id = next.endpoint_id AND d.workspace_id = next.workspace_id
RETURNING d.event_id, d.endpoint_id, d.workspace_id, d.attempts, d.attempt_base,
  coalesce(d.bytes, {MAX_DATA_BYTES})
"""  # noqa: S608 (constant)

_RECORDED = """
SELECT event_id, endpoint_id FROM postrider.delivery
WHERE event_id = ANY($1::uuid[]) AND workspace_id = ANY($2::text[])
"""

_OWNED = """
SELECT event_id, endpoint_id, workspace_id FROM postrider.delivery WHERE state = 'sending' AND owner = $1
"""

_RELEASE = """
UPDATE postrider.delivery AS d SET state = 'waiting', owner = NULL
FROM (SELECT unnest($2::uuid[]) AS event_id, unnest($3::bigint[]) AS endpoint_id,
             unnest($4::text[]) AS workspace_id) AS r
WHERE d.event_id = r.event_id AND d.endpoint_id = r.endpoint_id AND d.workspace_id = r.workspace_id
  AND d.owner = $1 AND d.state = 'sending'
"""

_PROMOTE_DUE = """
WITH next AS (
  SELECT event_id, endpoint_id, workspace_id FROM postrider.delivery
  WHERE state = 'retrying' AND due <= $1 ORDER BY due LIMIT $2 FOR UPDATE SKIP LOCKED
), promoted AS (
  UPDATE postrider.delivery AS d SET state = 'waiting', due = NULL, updated_at = $1 FROM next
  WHERE d.event_id = next.event_id AND d.endpoint_id = next.endpoint_id AND d.workspace_id = next.workspace_id
  RETURNING d.endpoint_id, d.event_id
)
SELECT DISTINCT ON (endpoint_id) endpoint_id, event_id FROM promoted ORDER BY endpoint_id, event_id
"""

# Steps from one endpoint to the next along the index, however many rows each of them has. $1: those after it.
WAITING_ENDPOINTS = """
WITH RECURSIVE step AS (
  SELECT min(endpoint_id) AS endpoint_id FROM postrider.delivery WHERE state = 'waiting' AND endpoint_id > {}
  UNION ALL
  SELECT (SELECT min(d.endpoint_id) FROM postrider.delivery AS d
          WHERE d.state = 'waiting' AND d.endpoint_id > step.endpoint_id)
  FROM step WHERE step.endpoint_id IS NOT NULL
)
SELECT endpoint_id FROM step WHERE endpoint_id IS NOT NULL
"""
_WAITING_AFTER = WAITING_ENDPOINTS.format("$1")
_CLOCK_SLACK = timedelta(days=1)
"""How far ahead of the daemon's an event's clock may be."""


async def recorded(connection: Connection, events: Sequence[Event]) -> set[DeliveryKey]:
    """The deliveries of these events that have a row already."""
    rows = await connection.fetch(
        _RECORDED, [event.id for event in events], list({event.workspace_id for event in events})
    )
    return {(row["event_id"], row["endpoint_id"]) for row in rows}


async def claim_waiting(
    connection: Connection,
    owner: int,
    wanted: Sequence[WaitingWanted],
    now: datetime,
    *,
    most_bytes: int,
    most_bytes_each: int,
) -> list[ClaimedDelivery]:
    """Take waiting deliveries of these endpoints, oldest events first; the bytes are of the events' JSON,
    and bound what is taken but for the first one, in all and of each endpoint."""
    rows = await connection.fetch(
        _CLAIM_WAITING,
        owner,
        [each.endpoint_id for each in wanted],
        [each.room for each in wanted],
        [each.floor for each in wanted],
        first_event_id(now + _CLOCK_SLACK),
        most_bytes,
        most_bytes_each,
        now,
        [each.workspace_id for each in wanted],
    )
    return sorted((ClaimedDelivery(*row) for row in rows), key=lambda claimed: claimed.event_id)


async def promote_due(connection: Connection, now: datetime, limit: int) -> dict[int, UUID]:
    """Turn retries that are due into waiting deliveries; return the endpoints with their first events."""
    rows = await connection.fetch(_PROMOTE_DUE, now, limit)
    return {row["endpoint_id"]: row["event_id"] for row in rows}


async def next_due(connection: Connection) -> datetime | None:
    due: datetime | None = await connection.fetchval(
        "SELECT min(due) FROM postrider.delivery WHERE state = 'retrying'"
    )
    return due


async def waiting_endpoints(connection: Connection, after: int, limit: int) -> list[int]:
    """The first `limit` endpoints that have waiting deliveries, of those with ids above `after`."""
    rows = await connection.fetch(f"{_WAITING_AFTER} LIMIT {limit}", after)
    return [row["endpoint_id"] for row in rows]


async def owned(connection: Connection, owner: int) -> dict[DeliveryKey, str]:
    """What the database thinks that `owner` is sending, each with its workspace."""
    rows = await connection.fetch(_OWNED, owner)
    return {(row["event_id"], row["endpoint_id"]): row["workspace_id"] for row in rows}


async def release(connection: Connection, owner: int, workspaces: Mapping[DeliveryKey, str]) -> None:
    """Give back deliveries unsent, each of its workspace."""
    await connection.execute(
        _RELEASE,
        owner,
        [event_id for event_id, _ in workspaces],
        [endpoint_id for _, endpoint_id in workspaces],
        list(workspaces.values()),
    )


async def release_all(connection: Connection, owner: int, now: datetime) -> int:
    """Give back every delivery that a daemon holds; return how many there were."""
    status = await connection.execute(
        """UPDATE postrider.delivery SET state = 'waiting', owner = NULL, updated_at = $2
           WHERE owner = $1 AND state = 'sending'""",
        owner,
        now,
    )
    return int(status.rsplit(" ", 1)[1])

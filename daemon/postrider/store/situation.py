"""What waits, and who is in trouble: read in bounded time, however much there is.

Counts stop at a limit: one that has reached it means "at least".
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from postrider.domain.model import EndpointState
from postrider.domain.status import Progress, Queue
from postrider.store.capture_rejections import SET_ASIDE
from postrider.store.database import Connection
from postrider.store.deliveries import WAITING_ENDPOINTS
from postrider.store.outbox import BACKLOG_LIMIT, emitted_at
from postrider.store.statement import BY_INDEX

EVENT_LIMIT = BACKLOG_LIMIT
DELIVERY_LIMIT = 100_000
MAX_ENDPOINTS = 50

_QUEUED = f"""
SELECT (SELECT count(*) FROM (SELECT FROM postrider.pending LIMIT {EVENT_LIMIT}) AS p) AS queued,
       (SELECT event_id FROM postrider.pending ORDER BY event_id LIMIT 1) AS oldest
"""  # noqa: S608 (constant)

_CLAIMED = """
SELECT owner, sum(cardinality(event_ids))::bigint AS events,
       (SELECT event_ids[1] FROM postrider.claim ORDER BY event_ids[1] LIMIT 1) AS oldest
FROM postrider.claim GROUP BY owner
"""

_PROGRESS = """
SELECT EXISTS (SELECT FROM postrider.pending WHERE event_id = $1) AS queued,
       ARRAY(SELECT owner FROM postrider.claim WHERE $1 = ANY(event_ids)) AS owners
"""

_DELIVERIES = f"""
SELECT (SELECT count(*) FROM (SELECT FROM postrider.delivery WHERE state = 'waiting'
                              LIMIT {DELIVERY_LIMIT}) AS d) AS waiting,
       (SELECT min(due) FROM postrider.delivery WHERE state = 'retrying') AS next_due
"""  # noqa: S608 (constant)

_OLDEST_WAITING = f"""
WITH endpoints AS ({WAITING_ENDPOINTS.format(0)})
SELECT head.event_id FROM endpoints, LATERAL (
  SELECT event_id FROM postrider.delivery
  WHERE state = 'waiting' AND endpoint_id = endpoints.endpoint_id ORDER BY event_id LIMIT 1
) AS head ORDER BY head.event_id LIMIT 1
"""  # noqa: S608 (constant)

_RETRYING = f"""
SELECT endpoint_id, count(*) AS retrying FROM (
  SELECT endpoint_id FROM postrider.delivery WHERE state = 'retrying' ORDER BY due LIMIT {DELIVERY_LIMIT}
) AS d GROUP BY endpoint_id
"""  # noqa: S608 (constant)

# What a person asked to be kept.
_PAUSED = f"""
SELECT (SELECT count(*) FROM postrider.endpoint WHERE state = 'paused') AS endpoints,
       (SELECT count(*) FROM (
          SELECT FROM postrider.endpoint AS e CROSS JOIN LATERAL (
            SELECT FROM postrider.delivery AS d
    WHERE d.state = 'waiting' AND d.endpoint_id = e.id AND d.workspace_id = e.workspace_id
            LIMIT {DELIVERY_LIMIT}
          ) AS d WHERE e.state = 'paused' LIMIT {DELIVERY_LIMIT}
        ) AS counted) AS waiting
"""  # noqa: S608 (constant)

# Those that should get events come first, the longest failing of them at the head.
_ENDPOINTS = f"""
SELECT e.*, waiting.waiting FROM (
  SELECT id, workspace_id, url, state, failing_since, disabled_reason, updated_at, count(*) OVER () AS total
  FROM postrider.endpoint
  WHERE state NOT IN ('deleted', 'paused')
    AND (state <> 'active' OR failing_since IS NOT NULL OR id = ANY($1::bigint[]))
  ORDER BY state <> 'active', failing_since NULLS LAST, updated_at DESC, id LIMIT {MAX_ENDPOINTS}
) AS e, LATERAL (
  SELECT count(*) AS waiting FROM (
    SELECT FROM postrider.delivery AS d
    WHERE d.state = 'waiting' AND d.endpoint_id = e.id AND d.workspace_id = e.workspace_id
    LIMIT {DELIVERY_LIMIT}
  ) AS counted
) AS waiting
ORDER BY e.state <> 'active', e.failing_since NULLS LAST, e.updated_at DESC, e.id
"""  # noqa: S608 (constant)


@dataclass(frozen=True, slots=True)
class TroubledEndpoint:
    """One that fails, gets nothing though nobody paused it, or has a lane that a daemon finds slow."""

    id: int
    workspace_id: str
    url: str
    state: EndpointState
    failing_since: datetime | None
    disabled_reason: str | None
    updated_at: datetime
    waiting: int
    """Deliveries in the database that wait for a slot; at most DELIVERY_LIMIT."""
    retrying: int
    """Of the DELIVERY_LIMIT deliveries of all endpoints that are due first."""


@dataclass(frozen=True, slots=True)
class Situation:
    queue: Queue
    """Events not yet recorded in full; those queued at most EVENT_LIMIT."""
    oldest_event_at: datetime | None
    waiting: int
    """Deliveries in the database that wait for a slot; at most DELIVERY_LIMIT."""
    oldest_waiting_at: datetime | None
    """When the event of the oldest of them was emitted."""
    retrying: int
    """Deliveries that are to be tried again; at most DELIVERY_LIMIT."""
    next_due: datetime | None
    set_aside: int
    """Rows of captured tables of which no event is made yet; at most MAX_COUNTED of them are counted."""
    troubled: int
    """Endpoints in trouble; `endpoints` has the first MAX_ENDPOINTS of them."""
    paused: int
    """Endpoints."""
    waiting_for_paused: int
    """Of the deliveries that wait; at most DELIVERY_LIMIT."""
    endpoints: tuple[TroubledEndpoint, ...]


async def queue(connection: Connection, alive: Collection[int]) -> tuple[Queue, datetime | None]:
    """What is not recorded in full and who is at it, and when its oldest event was emitted; `alive`: the
    daemons that live."""
    await connection.execute(BY_INDEX)
    queued = await connection.fetchrow(_QUEUED)
    assert queued is not None
    claims = await connection.fetch(_CLAIMED)
    claimed = sum(row["events"] for row in claims if row["owner"] in alive)
    stranded = sum(row["events"] for row in claims) - claimed
    oldest = [row["oldest"] for row in (queued, *claims) if row["oldest"] is not None]
    return (
        Queue(queued["queued"], claimed, stranded, len(alive)),
        emitted_at(min(oldest)) if oldest else None,
    )


async def read(connection: Connection, slow: Iterable[int], alive: Collection[int]) -> Situation:
    """`slow`: the endpoints that daemons report as being in trouble; `alive`: the daemons that live."""
    queued, oldest_event_at = await queue(connection, alive)
    deliveries = await connection.fetchrow(_DELIVERIES)
    paused = await connection.fetchrow(_PAUSED)
    assert deliveries is not None
    assert paused is not None
    retrying = {row["endpoint_id"]: row["retrying"] for row in await connection.fetch(_RETRYING)}
    rows = await connection.fetch(_ENDPOINTS, list(slow))
    return Situation(
        queue=queued,
        oldest_event_at=oldest_event_at,
        waiting=deliveries["waiting"],
        oldest_waiting_at=emitted_at(await connection.fetchval(_OLDEST_WAITING)),
        retrying=sum(retrying.values()),
        next_due=deliveries["next_due"],
        set_aside=await connection.fetchval(SET_ASIDE),
        troubled=rows[0]["total"] if rows else 0,
        paused=paused["endpoints"],
        waiting_for_paused=paused["waiting"],
        endpoints=tuple(
            TroubledEndpoint(
                id=row["id"],
                workspace_id=row["workspace_id"],
                url=row["url"],
                state=EndpointState(row["state"]),
                failing_since=row["failing_since"],
                disabled_reason=row["disabled_reason"],
                updated_at=row["updated_at"],
                waiting=row["waiting"],
                retrying=retrying.get(row["id"], 0),
            )
            for row in rows
        ),
    )


async def progress(connection: Connection, event_id: UUID, alive: Collection[int]) -> Progress:
    """How far the fan-out of an event is, where there is one."""
    row = await connection.fetchrow(_PROGRESS, event_id)
    assert row is not None
    if row["queued"]:
        return Progress.QUEUED
    if not row["owners"]:
        return Progress.DONE
    return Progress.CLAIMED if set(row["owners"]) & set(alive) else Progress.STRANDED

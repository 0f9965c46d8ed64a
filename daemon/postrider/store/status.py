"""What waits, and who is in trouble: read in bounded time, however much there is.

Counts stop at a limit: one that has reached it means "at least".
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from postrider.domain.model import EndpointState
from postrider.store.captures import SET_ASIDE
from postrider.store.database import Connection, Database
from postrider.store.deliveries import WAITING_ENDPOINTS
from postrider.store.outbox import BACKLOG, BACKLOG_LIMIT, emitted_at

EVENT_LIMIT = BACKLOG_LIMIT
DELIVERY_LIMIT = 100_000
MAX_ENDPOINTS = 50

# Statistics may be older than the backlog. Whatever they say, rows are read in the order of an index, until
# a limit is reached; a bitmap would hold all there are first.
_BOUNDED = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off"

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

# Those that should get events come first, the longest failing of them at the head.
_ENDPOINTS = f"""
SELECT e.*, waiting.waiting FROM (
  SELECT id, workspace_id, url, state, failing_since, disabled_reason, updated_at, count(*) OVER () AS total
  FROM postrider.endpoint
  WHERE state <> 'deleted' AND (state <> 'active' OR failing_since IS NOT NULL OR id = ANY($1::bigint[]))
  ORDER BY state <> 'active', failing_since NULLS LAST, updated_at DESC, id LIMIT {MAX_ENDPOINTS}
) AS e, LATERAL (
  SELECT count(*) AS waiting FROM (
    SELECT FROM postrider.delivery AS d WHERE d.state = 'waiting' AND d.endpoint_id = e.id
    LIMIT {DELIVERY_LIMIT}
  ) AS counted
) AS waiting
ORDER BY e.state <> 'active', e.failing_since NULLS LAST, e.updated_at DESC, e.id
"""  # noqa: S608 (constant)


@dataclass(frozen=True, slots=True)
class TroubledEndpoint:
    """An endpoint that fails, gets nothing, or has a lane that a daemon finds slow."""

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
    events: int
    """Events not yet recorded in full; at most EVENT_LIMIT."""
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
    endpoints: tuple[TroubledEndpoint, ...]


class Status:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, slow: Iterable[int]) -> Situation:
        """`slow`: the endpoints that daemons report as being in trouble."""
        async with self._database.transaction() as connection:
            await connection.execute(_BOUNDED)
            return await _read(connection, list(slow))


async def _read(connection: Connection, slow: list[int]) -> Situation:
    pending = await connection.fetchrow(BACKLOG)
    deliveries = await connection.fetchrow(_DELIVERIES)
    assert pending is not None
    assert deliveries is not None
    retrying = {row["endpoint_id"]: row["retrying"] for row in await connection.fetch(_RETRYING)}
    rows = await connection.fetch(_ENDPOINTS, slow)
    return Situation(
        events=pending["events"],
        oldest_event_at=emitted_at(pending["oldest"]),
        waiting=deliveries["waiting"],
        oldest_waiting_at=emitted_at(await connection.fetchval(_OLDEST_WAITING)),
        retrying=sum(retrying.values()),
        next_due=deliveries["next_due"],
        set_aside=await connection.fetchval(SET_ASIDE),
        troubled=rows[0]["total"] if rows else 0,
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

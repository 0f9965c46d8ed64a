"""How much there is in the whole database, for metrics: counted in bounded time.

Counts stop at a limit: one that has reached it means "at least".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import asyncpg

from postrider.store.database import Connection
from postrider.store.deliveries import WAITING_ENDPOINTS
from postrider.store.outbox import emitted_at
from postrider.store.situation import DELIVERY_LIMIT
from postrider.store.statement import BY_INDEX

# Of endpoints that are active, and of others. uuid has no min() before PostgreSQL 18.
_ALL_WAITING = f"""
WITH endpoints AS MATERIALIZED (
  SELECT w.endpoint_id, e.state = 'active' AS active
  FROM ({WAITING_ENDPOINTS.format(0)}) AS w JOIN postrider.endpoint AS e ON e.id = w.endpoint_id
)
SELECT of.active,
  (SELECT count(*) FROM (
     SELECT FROM endpoints AS e CROSS JOIN LATERAL (
       SELECT FROM postrider.delivery AS d WHERE d.state = 'waiting' AND d.endpoint_id = e.endpoint_id
       OFFSET 0
     ) AS d WHERE e.active = of.active LIMIT {DELIVERY_LIMIT}
   ) AS counted) AS deliveries,
  (SELECT head.event_id FROM endpoints AS e CROSS JOIN LATERAL (
     SELECT event_id FROM postrider.delivery AS d
     WHERE d.state = 'waiting' AND d.endpoint_id = e.endpoint_id ORDER BY event_id LIMIT 1
   ) AS head WHERE e.active = of.active ORDER BY head.event_id LIMIT 1) AS oldest
FROM (VALUES (true), (false)) AS of (active)
"""  # noqa: S608 (constant)

# The oldest days come first, so what lies beyond the limit is not older than a day more than what is counted.
_ALL_RETRYING = f"""
SELECT count(*) AS deliveries, min(event_id::text COLLATE "C")::uuid AS oldest
FROM (SELECT event_id FROM postrider.delivery WHERE state = 'retrying' LIMIT {DELIVERY_LIMIT}) AS d
"""  # noqa: S608 (constant)

_ENDPOINTS_BY_STATE = """
SELECT CASE WHEN state = 'active' AND failing_since IS NOT NULL THEN 'failing' ELSE state END AS state,
       count(*) AS endpoints
FROM postrider.endpoint WHERE state <> 'deleted' GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class Total:
    deliveries: int
    """At most DELIVERY_LIMIT."""
    oldest: datetime | None
    """When the event of the oldest of those that were counted was emitted."""


@dataclass(frozen=True, slots=True)
class Totals:
    deliveries: Mapping[Literal["waiting", "kept", "retrying"], Total]
    """kept: they wait for endpoints that are paused or disabled."""
    endpoints: Mapping[str, int]
    """By state; one that is active but fails is `failing`."""


async def count(connection: Connection, timeout_s: float) -> Totals | None:
    """Count, in a transaction of its own; None where a statement takes longer than that."""
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL statement_timeout = {int(timeout_s * 1000)}")
            endpoints = await connection.fetch(_ENDPOINTS_BY_STATE)
            await connection.execute(BY_INDEX)
            waiting = {row["active"]: _total(row) for row in await connection.fetch(_ALL_WAITING)}
            retrying = await connection.fetchrow(_ALL_RETRYING)
    except asyncpg.QueryCanceledError:
        return None
    assert retrying is not None
    return Totals(
        deliveries={"waiting": waiting[True], "kept": waiting[False], "retrying": _total(retrying)},
        endpoints={row["state"]: row["endpoints"] for row in endpoints},
    )


def _total(row: asyncpg.Record) -> Total:
    return Total(row["deliveries"], emitted_at(row["oldest"]))

"""Rows that capture triggers set aside, until events are made of them."""

from collections.abc import Sequence
from datetime import datetime

from postrider.domain.capture_steps import MAX_COUNTED, Rejection, SetAside
from postrider.store.database import Connection

SET_ASIDE = f"SELECT count(*) FROM (SELECT FROM postrider.capture_rejected LIMIT {MAX_COUNTED}) AS r"  # noqa: S608
"""Rows of which no event is made yet; counting stops at the limit."""

_SET_ASIDE_BY_CAPTURE = """
SELECT coalesce(c.name, r.capture) AS name, coalesce(r.rows, 0) AS rows,
  c.name IS NOT NULL AND to_regprocedure(
    format('postrider.%I(text,json,json,json)', 'capture_' || c.name)) IS NOT NULL AS applied
FROM postrider.capture AS c FULL JOIN (
    SELECT capture, count(*) AS rows FROM postrider.capture_rejected GROUP BY capture
  ) AS r ON r.capture = c.name
ORDER BY 1
"""


async def count_by_capture(connection: Connection) -> dict[str, SetAside]:
    """For each capture that is applied or has set rows aside, by name."""
    rows = await connection.fetch(_SET_ASIDE_BY_CAPTURE)
    return {row["name"]: SetAside(*row) for row in rows}


async def count(connection: Connection) -> int:
    """Of all captures, up to MAX_COUNTED."""
    counted: int = await connection.fetchval(SET_ASIDE)
    return counted


async def tell(connection: Connection, limit: int) -> list[Rejection]:
    """What was set aside and not yet told; it counts as told from now on."""
    rows = await connection.fetch(
        """UPDATE postrider.capture_rejected SET logged = true
           WHERE id IN (SELECT id FROM postrider.capture_rejected WHERE NOT logged
                        ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)
           RETURNING id, at, capture, operation, object_id, reason""",
        limit,
    )
    return sorted((Rejection(*row) for row in rows), key=lambda each: each.id)


async def latest(connection: Connection, limit: int) -> list[Rejection]:
    """Newest first."""
    rows = await connection.fetch(
        """SELECT id, at, capture, operation, object_id, reason FROM postrider.capture_rejected
           ORDER BY id DESC LIMIT $1""",
        limit,
    )
    return [Rejection(*row) for row in rows]


async def discard(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    """Delete what captures of these names set aside; return how many rows of each that were."""
    rows = await connection.fetch(
        """WITH gone AS (DELETE FROM postrider.capture_rejected WHERE capture = ANY ($1::text[])
                         RETURNING capture)
           SELECT capture, count(*) AS rows FROM gone GROUP BY capture""",
        list(names),
    )
    return {row["capture"]: row["rows"] for row in rows}


async def forget(connection: Connection, before: datetime) -> None:
    """Delete those that are older."""
    await connection.execute("DELETE FROM postrider.capture_rejected WHERE at < $1", before)

"""Events of captured rows, written to the outbox where their trigger could not."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from postrider.store.capture_rows import EVENT_COLUMNS
from postrider.store.database import Connection

_INSERT = f"""
INSERT INTO postrider.outbox (occurred_at, {EVENT_COLUMNS})
SELECT at, workspace_id, type, object_type, object_id, data::json, previous_attributes::json, actor::json,
       related::json
FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
            $8::text[], $9::text[]) WITH ORDINALITY AS made (at, {EVENT_COLUMNS}, place)
ORDER BY place
"""  # noqa: S608 - names only


async def insert(connection: Connection, events: Sequence[tuple[datetime, asyncpg.Record]]) -> None:
    """Write events in this order, each with the time of its change. The records have EVENT_COLUMNS."""
    columns = [[event[name] for _, event in events] for name in EVENT_COLUMNS.split(", ")]
    await connection.execute(_INSERT, [at for at, _ in events], *columns)

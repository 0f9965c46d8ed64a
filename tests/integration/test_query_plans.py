"""Plan guards: the hot statements read by key, however many rows there are."""

import asyncio
import re
from typing import Any

import pytest

from postrider.store import deliveries, endpoint_deliveries, missed, outbox, situation, totals
from postrider.store.database import Database
from tests.support.daemon_process import query

HOT = {
    "claim": (
        outbox._claim_statement(128, outbox._TAKEN),
        "1, '00000000-0000-0000-0000-000000000000'::uuid, 4711, 1000000",
    ),
    "read": (outbox._READ, "ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[]"),
    "record first": (
        deliveries._RECORD_FIRST,
        "1, ARRAY[]::uuid[], ARRAY[]::bigint[], ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::smallint[],"
        " ARRAY[]::timestamptz[], ARRAY[]::text[], ARRAY[]::timestamptz[], ARRAY[]::real[], ARRAY[]::real[],"
        " ARRAY[]::smallint[], ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::bigint[], ARRAY[]::bigint[],"
        " ARRAY[]::integer[], ARRAY[]::integer[], ARRAY[]::bigint[], ARRAY[]::integer[], ARRAY[]::integer[],"
        " now()",
    ),
    "record again": (
        deliveries._RECORD_AGAIN,
        "1, ARRAY[]::uuid[], ARRAY[]::bigint[], ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::smallint[],"
        " ARRAY[]::timestamptz[], ARRAY[]::text[], ARRAY[]::timestamptz[], ARRAY[]::real[], ARRAY[]::real[],"
        " ARRAY[]::smallint[], ARRAY[]::text[], ARRAY[]::text[], now()",
    ),
    "claim waiting": (
        deliveries._CLAIM_WAITING,
        "1, ARRAY[7]::bigint[], ARRAY[100], ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[],"
        " 'ffffffff-0000-7000-8000-000000000000'::uuid, 1000000, 1000000, now()",
    ),
    "missed: of an event": (
        missed._OF_EVENT,
        "'default', '019a8f6e-0000-7000-8000-000000000000'::uuid, ARRAY['deal.updated']",
    ),
    "missed: events": (
        missed._EVENTS,
        "'default', '019a8f6e-0000-7000-8000-000000000000'::uuid,"
        " 'ffffffff-0000-7000-8000-000000000000'::uuid, 1000",
    ),
    "missed: fates": (missed._FATES, "7, ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[], 'default'"),
    "endpoint: waiting": (endpoint_deliveries.COUNT, "7, 'default'"),
    "endpoint: cancel waiting": (endpoint_deliveries.CANCEL_WAITING, "7, now(), 100"),
    "endpoint: cancel retrying": (endpoint_deliveries.CANCEL_RETRYING, "7, now(), 100"),
    "promote due": (deliveries._PROMOTE_DUE, "now(), 100"),
    "waiting endpoints": (f"{deliveries._WAITING_AFTER} LIMIT 500", "-1"),
    "next due": ("SELECT min(due) FROM postrider.delivery WHERE state = 'retrying'", ""),
    "backlog": (outbox.BACKLOG, ""),
    "status: queued": (situation._QUEUED, ""),
    "status: progress": (situation._PROGRESS, "'019a8f6e-0000-7000-8000-000000000000'::uuid"),
    "totals: waiting": (totals._ALL_WAITING, ""),
    "totals: retrying": (totals._ALL_RETRYING, ""),
    "status: paused": (situation._PAUSED, ""),
    "status: deliveries": (situation._DELIVERIES, ""),
    "status: oldest waiting": (situation._OLDEST_WAITING, ""),
    "status: retrying": (situation._RETRYING, ""),
    "status: endpoints": (situation._ENDPOINTS, "ARRAY[7]"),
}


@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_scans_no_table(database_dsn: str, name: str) -> None:
    query(
        database_dsn,
        "INSERT INTO postrider.outbox (type, data) SELECT 'a.b', '{}' FROM generate_series(1, 3000)",
    )
    query(
        database_dsn,
        """INSERT INTO postrider.delivery
             (event_id, endpoint_id, workspace_id, state, attempts, due, updated_at)
           SELECT id, 7, 'default', CASE WHEN random() < 0.1 THEN 'waiting'
                                         WHEN random() < 0.1 THEN 'retrying' ELSE 'succeeded' END,
                  1, now(), now() FROM postrider.outbox""",
    )
    statement, arguments = HOT[name]

    async def explain() -> Any:
        database = Database(database_dsn, pool_size=1)
        await database.open()
        async with database.connection() as connection:
            await connection.execute("ANALYZE")
            text = re.sub(r"\$(\d+)", lambda match: arguments_list[int(match[1]) - 1], statement)
            rows = await connection.fetch(f"EXPLAIN {text}")
        await database.close()
        return "\n".join(row[0] for row in rows)

    arguments_list = [part.strip() for part in arguments.split(",")]
    plan = asyncio.run(explain())
    assert not re.search(r"Seq Scan on (pending|outbox|delivery)(?!_default)", plan), plan

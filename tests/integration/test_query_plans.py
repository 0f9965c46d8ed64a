"""Plan guards: the hot statements read by key, however many rows there are."""

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from postrider.domain.audit import EVERYWHERE, Scope
from postrider.domain.model import EndpointState
from postrider.store import (
    audit,
    deliveries,
    delivery_results,
    endpoint_deliveries,
    endpoints,
    missed,
    outbox,
    situation,
    totals,
)
from postrider.store.database import Database
from postrider.store.endpoints import Place
from tests.support.daemon_process import query

HOT = {
    "claim": (
        outbox._claim_statement(128, outbox._TAKEN),
        "1, '00000000-0000-0000-0000-000000000000'::uuid, 4711, 1000000",
    ),
    "read": (outbox._READ, "ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[]"),
    "record first": (
        delivery_results._RECORD_FIRST,
        "1, ARRAY[]::uuid[], ARRAY[]::bigint[], ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::smallint[],"
        " ARRAY[]::timestamptz[], ARRAY[]::text[], ARRAY[]::float8[], ARRAY[]::real[], ARRAY[]::real[],"
        " ARRAY[]::smallint[], ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::bigint[], ARRAY[]::bigint[],"
        " ARRAY[]::integer[], ARRAY[]::integer[], ARRAY[]::bigint[], ARRAY[]::integer[], ARRAY[]::integer[],"
        " now()",
    ),
    "record later": (
        delivery_results._RECORD_LATER,
        "1, ARRAY[]::uuid[], ARRAY[]::bigint[], ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::smallint[],"
        " ARRAY[]::timestamptz[], ARRAY[]::text[], ARRAY[]::float8[], ARRAY[]::real[], ARRAY[]::real[],"
        " ARRAY[]::smallint[], ARRAY[]::text[], ARRAY[]::text[], now()",
    ),
    "claim waiting": (
        deliveries._CLAIM_WAITING,
        "1, ARRAY[7]::bigint[], ARRAY[100], ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[],"
        " 'ffffffff-0000-7000-8000-000000000000'::uuid, 1000000, 1000000, now(), ARRAY['default']",
    ),
    "recorded": (
        deliveries._RECORDED,
        "ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[], ARRAY['default']",
    ),
    "owned": (deliveries._OWNED, "1"),
    "release": (
        deliveries._RELEASE,
        "1, ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[], ARRAY[7]::bigint[], ARRAY['default']",
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


NOW = datetime.now(UTC)


def plan_of(dsn: str, statement: str, parameters: Sequence[object]) -> str:
    return "\n".join(row[0] for row in query(dsn, f"EXPLAIN {statement}", *parameters))


PLACE = Place("ws_5", NOW - timedelta(days=1), 5)
LISTS: dict[str, dict[str, Any]] = {
    "all": {},
    "deleted ones too": {"include_deleted": True},
    "workspace": {"workspace_id": "ws_7"},
    "state": {"state": EndpointState.PAUSED},
    "workspace, state": {"workspace_id": "ws_7", "state": EndpointState.ACTIVE},
    "workspace, deleted ones too": {"workspace_id": "ws_7", "include_deleted": True},
}
NO_FILTER: dict[str, Any] = {"workspace_id": None, "state": None, "include_deleted": False}


def test_lists_of_endpoints_and_of_changes_read_a_page_of_an_index(database_dsn: str) -> None:
    """With 100,000 endpoints, most of them deleted or not."""
    query(database_dsn, "ALTER TABLE postrider.endpoint DISABLE TRIGGER USER")
    query(
        database_dsn,
        """INSERT INTO postrider.endpoint
             (id, workspace_id, url, patterns, dialect, state, created_at, updated_at)
           SELECT n, 'ws_' || n % 10, 'https://example.com', '{*}', 'standard',
                  (ARRAY['active', 'deleted', 'deleted', 'paused', 'active'])[n % 5 + 1],
                  now() - n * interval '1 s', now()
           FROM generate_series(1, 100000) AS n""",
    )
    query(
        database_dsn,
        """INSERT INTO postrider.audit_log (at, workspace_id, who, how, origin, action, subject)
           SELECT now(), 'ws_' || n % 100, 'ada', 'cli', 'host', 'endpoint.paused', 'ep_' || n
           FROM generate_series(1, 20000) AS n""",
    )
    query(database_dsn, "ANALYZE postrider.endpoint, postrider.audit_log")
    for name, filters in LISTS.items():
        for scope in (EVERYWHERE, Scope("ws_7")):
            for after in (None, PLACE):
                statement, parameters = endpoints.page_statement(
                    scope, **{**NO_FILTER, **filters}, after=after, limit=51
                )
                plan = plan_of(database_dsn, statement, parameters)
                assert "endpoint_place" in plan, f"{name}\n{plan}"
                assert not re.search(r"Seq Scan on endpoint e|Sort", plan), f"{name}\n{plan}"
    for scope in (EVERYWHERE, Scope("ws_7")):
        for subject in (None, "ep_70"):
            for before_id in (None, 10_000):
                statement, parameters = audit.entries_statement(
                    scope, subject=subject, before_id=before_id, limit=51
                )
                plan = plan_of(database_dsn, statement, parameters)
                assert "Seq Scan on audit_log" not in plan, plan
                assert subject is not None or "Sort" not in plan, plan

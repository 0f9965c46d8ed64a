"""Plan guards: lists that people read look at a bounded number of rows, whatever they are asked for, beside
90 days of partitions and ten million events and deliveries."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from postrider.domain.audit import EVERYWHERE, Scope
from postrider.domain.lists import DeliveryFilter, EventFilter
from postrider.domain.model import DeliveryState, first_event_id
from postrider.edges.resources import sql_dir
from postrider.store import delivery_search, event_search
from postrider.store.database import Connection
from postrider.store.delivery_search import Route
from postrider.store.migrations import read_schema
from postrider.store.statement import BY_INDEX, LOOK_AT_MOST
from tests.support.migrating import migrate

NOW = datetime.now(UTC)
DAYS, ROWS = 90, 10_000_000
TABLES = ("outbox", "delivery", "attempt")
MINE = Scope("ws_1")
AHEAD = timedelta(days=20)

_SAMPLE = """
INSERT INTO postrider.outbox (id, workspace_id, type, object_type, object_id, data)
SELECT (lpad(to_hex((extract(epoch FROM day) * 1000)::bigint + n * 572185), 12, '0')
        || left(md5(n::text), 20))::uuid,
       'ws_' || n % 50, (ARRAY['deal.updated', 'deal.created', 'contact.created'])[1 + n % 3], 'deal',
       'dl_' || n % 97, '{}'
FROM generate_series($1::date::timestamp, $2::date, '1 day') AS day, generate_series(1, 150) AS n
"""
_DELIVERIES = """
INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, attempts, due, owner, updated_at)
SELECT id, 1 + number % 200, workspace_id,
       CASE number % 25 WHEN 0 THEN 'waiting' WHEN 1 THEN 'sending' WHEN 2 THEN 'retrying'
                        WHEN 3 THEN 'failed' WHEN 4 THEN 'cancelled' ELSE 'succeeded' END,
       1, now(), 1, now()
FROM (SELECT id, workspace_id, row_number() OVER (ORDER BY id) AS number FROM postrider.outbox) AS events
"""
_ATTEMPTS = """
INSERT INTO postrider.attempt (event_id, endpoint_id, workspace_id, number, started_at, duration_ms, status)
SELECT event_id, endpoint_id, workspace_id, 1, now(), 1, 503 FROM postrider.delivery
WHERE state <> 'succeeded'
"""
_ENDPOINTS = """
INSERT INTO postrider.endpoint (id, workspace_id, url, patterns, dialect, created_at, updated_at)
SELECT n, 'ws_' || n % 50, 'https://a.example/', '{*}', 'standard', now(), now()
FROM generate_series(1, 200) AS n
"""
# What a table of that size would have; the planner takes the rows of a page from here.
_SCALE = """
UPDATE pg_class AS c SET reltuples = $1::real / $2
FROM pg_inherits AS i
WHERE i.inhrelid = c.oid AND c.relname ~ '_[0-9]{8}$' AND c.relkind = 'r'
  AND i.inhparent IN ('postrider.outbox'::regclass, 'postrider.delivery'::regclass,
                      'postrider.attempt'::regclass)
"""


def connected(dsn: str, story: Callable[[Connection], Awaitable[None]]) -> None:
    async def tell() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await story(connection)
        finally:
            await connection.close()

    asyncio.run(tell())


@pytest.fixture
def ninety_days(database_dsn: str) -> str:
    """A database whose statistics say that it is full."""

    async def fill(connection: Connection) -> None:
        last = NOW.date() + timedelta(days=2)  # the migrations made them
        first = last - timedelta(days=DAYS - 1)
        for table, number in product(TABLES, range(DAYS)):
            day = first + timedelta(days=number)
            await connection.execute("SELECT postrider.create_partition($1, $2)", table, day)
            # Else the real numbers come back.
            await connection.execute(
                f"ALTER TABLE postrider.{table}_{day:%Y%m%d} SET (autovacuum_enabled = false)"
            )
        await connection.execute("ALTER TABLE postrider.outbox DISABLE TRIGGER USER")
        await connection.execute(_ENDPOINTS)
        await connection.execute("SET timezone = 'UTC'")
        await connection.execute(_SAMPLE, first, last)
        await connection.execute(_DELIVERIES)
        await connection.execute(_ATTEMPTS)
        await connection.execute("ANALYZE")
        await connection.execute(_SCALE, ROWS, DAYS)

    connected(database_dsn, fill)
    return database_dsn


class Plan:
    """What PostgreSQL would do."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root

    def nodes(self, node: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        node = node or self.root
        yield node
        for child in node.get("Plans", []):
            yield from self.nodes(child)

    def flaws(self) -> Iterator[str]:
        for node in self.nodes():
            kind, table = node["Node Type"], node.get("Relation Name", "")
            partition = re.fullmatch(r"(outbox|delivery|attempt)_(\w+)", table)
            if partition and kind not in ("Index Scan", "Index Only Scan"):
                yield f"{kind} on {table}"
            if partition and partition[2] != "default" and not _passes_all(node.get("Filter", "")):
                yield f"rows of {table} are looked at for {node['Filter']}"
            if kind in ("Sort", "Hash", "Materialize", "HashAggregate") and not _is_bounded(node["Plans"][0]):
                yield f"{kind} of what has no bound"


def _passes_all(condition: str) -> bool:
    """Whether a filter leaves out no more than the deliveries of one event, or nothing at all."""
    rest = re.sub(r"\(ROW\((\w+\.)?(event_id|id), (\w+\.)?endpoint_id\) [<>] ROW\([^)]*\)\)", "", condition)
    rest = re.sub(r"\(\(?(\w+\.)?workspace_id\)?(::text)? = [^()]*(\(InitPlan \d+\)\.col1|\$\d+)\)", "", rest)
    return not rest.replace("AND", "").strip("() ")


def _is_bounded(node: dict[str, Any]) -> bool:
    """Whether a limit stands between this node and every scan of a partitioned table; what a nested loop
    looks up for each of its rows is as bounded as these."""
    if node["Node Type"] == "Limit":
        return True
    children = [
        child
        for child in node.get("Plans", [])
        if child["Parent Relationship"] not in ("InitPlan", "SubPlan")
    ]
    if node["Node Type"] == "Nested Loop":
        return _is_bounded(children[0])
    if not children:
        return not re.fullmatch(r"(outbox|delivery|attempt)_\w+", node.get("Relation Name", ""))
    return all(map(_is_bounded, children))


async def check_plans(
    statements: Sequence[tuple[str, str, Sequence[object]]], connection: Connection
) -> None:
    await connection.execute(BY_INDEX.replace("LOCAL ", ""))
    for name, statement, parameters in statements:
        text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *parameters)
        plan = Plan(json.loads(text)[0]["Plan"])
        flaws = list(plan.flaws())
        if flaws:
            pytest.fail("\n".join([name, *flaws[:5]]))


EVENT = UUID(int=first_event_id(NOW - timedelta(hours=10)).int + 4711)
PAGES = [(True, None), (False, (EVENT, 7)), (True, (EVENT, 7))]
"""Orders, and where a page begins."""
TIMES: list[dict[str, datetime]] = [
    {}, {"since": NOW - timedelta(hours=30), "until": NOW - timedelta(hours=2)}
]  # fmt: skip


def deliveries_asked_for() -> Iterator[tuple[Scope, DeliveryFilter]]:
    filters: list[dict[str, Any]] = [
        {}, {"type_pattern": "deal.*", "http_status": range(500, 600), "tests": False}
    ]  # fmt: skip
    whose = [(EVERYWHERE, None), (EVERYWHERE, "ws_1"), (MINE, None)]
    for (scope, workspace), endpoint, state, time, more in product(
        whose, (None, 7), (None, *DeliveryState), TIMES, filters
    ):
        yield scope, DeliveryFilter(workspace_id=workspace, endpoint_id=endpoint, state=state, **time, **more)
    for (scope, workspace), state in product(whose, (None, DeliveryState.FAILED)):
        yield scope, DeliveryFilter(event_id=EVENT, workspace_id=workspace, state=state)


def test_every_list_of_deliveries_looks_at_a_bounded_number_of_rows(ninety_days: str) -> None:
    statements: list[tuple[str, str, Sequence[object]]] = []
    for number, (scope, chosen) in enumerate(deliveries_asked_for()):
        newest_first, after = PAGES[number % len(PAGES)]
        best = delivery_search.route_of(scope, chosen)
        routes = {best}
        if best is Route.UNDER_WAY:
            routes.add(delivery_search._beside_many(scope, chosen))
            statements.append((f"{chosen}", delivery_search.count_statement(chosen, LOOK_AT_MOST), ()))
        if best is Route.GIVEN_UP:
            routes.add(delivery_search._without_index(scope, chosen))
        for route in routes:
            page: dict[str, Any] = {
                "after": after,
                "newest_first": newest_first,
                "look_at_most": LOOK_AT_MOST,
            }
            name = f"{scope} {chosen} {route} {page}"
            found = delivery_search.search_statement(scope, chosen, route, limit=50, **page)
            statements.append((name, *found))
            if route is not Route.UNDER_WAY:
                statements.append((name, *delivery_search.reach_statement(scope, chosen, route, **page)))

    connected(ninety_days, partial(check_plans, statements))


def test_every_list_of_events_looks_at_a_bounded_number_of_rows(ninety_days: str) -> None:
    filters: list[dict[str, Any]] = [
        {}, {"type_pattern": "deal.*"}, {"type_pattern": "deal.updated", "object_type": "deal"},
        {"object_id": "dl_1"},
    ]  # fmt: skip
    statements: list[tuple[str, str, Sequence[object]]] = []
    whose = [(EVERYWHERE, None), (EVERYWHERE, "ws_1"), (MINE, None)]
    for (scope, workspace), time, more, (newest_first, after) in product(whose, TIMES, filters, PAGES):
        chosen = EventFilter(workspace_id=workspace, **time, **more)
        page: dict[str, Any] = {
            "after": after and after[0], "newest_first": newest_first, "look_at_most": LOOK_AT_MOST
        }  # fmt: skip
        name = f"{scope} {chosen} {page}"
        statements.append((name, *event_search.search_statement(scope, chosen, limit=50, **page)))
        statements.append((name, *event_search.reach_statement(scope, chosen, **page)))

    connected(ninety_days, partial(check_plans, statements))


def test_a_large_partition_gets_no_index_from_a_migration_and_every_later_one_has_it(
    empty_database_dsn: str,
) -> None:
    schema = read_schema(sql_dir())

    async def story(connection: Connection) -> None:
        await migrate(connection, schema, to=20)
        await connection.execute(
            """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, updated_at, reason)
               SELECT postrider.new_event_id(), 7, 'ws_1', 'failed', now(), repeat('x', 1900)
               FROM generate_series(1, 5000)"""
        )
        await migrate(connection, schema)
        await connection.execute("SELECT postrider.create_partition('delivery', $1)", NOW.date() + AHEAD)

        async def indexes(day: timedelta) -> int:
            count: int = await connection.fetchval(
                """SELECT count(*) FROM pg_index WHERE indrelid = $1::text::regclass
                   AND pg_get_expr(indpred, indrelid) LIKE '%cancelled%'""",
                f"postrider.delivery_{NOW.date() + day:%Y%m%d}",
            )
            return count

        assert [await indexes(day) for day in (timedelta(0), timedelta(days=1), AHEAD)] == [0, 3, 3]
        chosen = DeliveryFilter(endpoint_id=7, state=DeliveryState.FAILED)
        await connection.execute(_ENDPOINTS.replace("n % 50", "1"))
        async with connection.transaction():
            page: dict[str, Any] = {"after": None, "newest_first": True, "limit": 10}
            assert len((await delivery_search.search(connection, MINE, chosen, **page)).rows) == 10

    connected(empty_database_dsn, story)


def test_where_a_large_partition_has_no_index_a_list_looks_at_a_bounded_number_of_rows(
    empty_database_dsn: str,
) -> None:
    schema = read_schema(sql_dir())

    async def story(connection: Connection) -> None:
        await migrate(connection, schema, to=20)
        await connection.execute(
            """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, updated_at, reason)
               SELECT postrider.new_event_id(), 7, 'ws_1', 'failed', now(), repeat('x', 1900)
               FROM generate_series(1, 5000)"""
        )
        await migrate(connection, schema)
        await connection.execute(_ENDPOINTS)

        async def looked_to(chosen: DeliveryFilter) -> UUID | None:
            async with connection.transaction():
                found = await delivery_search.search(
                    connection, EVERYWHERE, chosen, after=None, newest_first=True, limit=10, look_at_most=100
                )
            assert found.rows == []
            return found.looked_to and found.looked_to[0]

        newest = await connection.fetch(
            "SELECT event_id FROM postrider.delivery ORDER BY event_id DESC LIMIT 100"
        )
        other = DeliveryFilter(endpoint_id=8, state=DeliveryState.FAILED)
        assert await looked_to(other) == newest[-1]["event_id"]
        assert await looked_to(DeliveryFilter(state=DeliveryState.CANCELLED)) == newest[-1]["event_id"]
        later = datetime.combine(NOW.date() + timedelta(days=1), datetime.min.time(), UTC)
        assert await looked_to(replace(other, since=later)) is None

    connected(empty_database_dsn, story)


def test_many_small_partitions_do_not_keep_daemons_waiting_for_their_indexes(empty_database_dsn: str) -> None:
    """The migration gives them to the newest ones."""
    schema = read_schema(sql_dir())

    async def story(connection: Connection) -> None:
        await migrate(connection, schema, to=20)
        await connection.execute(
            """SELECT postrider.create_partition('delivery', $1::date - day)
               FROM generate_series(1, 140) AS day""",
            NOW.date(),
        )
        await migrate(connection, schema, to=21)
        indexed = await connection.fetch(
            """SELECT indrelid::regclass::text AS name FROM pg_index
               WHERE pg_get_expr(indpred, indrelid) LIKE '%cancelled%'
               GROUP BY 1 HAVING count(*) = 3 ORDER BY 1 DESC"""
        )
        assert len(indexed) == 128 + 1  # with the parent
        names = [row["name"] for row in indexed]
        assert names[:2] == [
            "postrider.delivery_default",
            f"postrider.delivery_{NOW.date() + timedelta(days=2):%Y%m%d}",
        ]

    connected(empty_database_dsn, story)

"""postrider.emit: what a CRM developer calls in a transaction."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import psycopg
import pytest
from psycopg.types.json import Json, Jsonb

from postrider.store.database import Connection
from tests.support.daemon_process import query

EMIT = "SELECT postrider.emit('deal.updated', '{\"id\":\"dl_1\"}')"


@asynccontextmanager
async def connections(dsn: str, count: int) -> AsyncIterator[list[Connection]]:
    opened: list[Connection] = [await asyncpg.connect(dsn) for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            await connection.close()


def run(dsn: str, count: int, story: Callable[..., Awaitable[None]]) -> None:
    async def tell() -> None:
        async with connections(dsn, count) as opened:
            await story(*opened)

    asyncio.run(tell())


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("'deal updated', '{}'", "event type 'deal updated' is not valid", "letters, digits and underscores"),
        ("'deal.', '{}'", "event type 'deal.' is not valid", "deal.updated"),
        ("'dëal', '{}'", "is not valid", "letters"),
        ("NULL, '{}'", "event type NULL is not valid", "deal.updated"),
        ("repeat('a', 129), '{}'", "is not valid", "up to 128"),
        ("'a.b', NULL", "data of a.b is NULL, not a JSON object", "Pass the object"),
        ("'a.b', '[1]'", "data of a.b is array, not a JSON object", "Pass the object"),
        ("'a.b', '{}', '[]'", "must be JSON objects or NULL", "Leave out"),
        ("'a.b', '{}', workspace_id => ''", "workspace_id of a.b", "default"),
        ("'a.b', '{}', workspace_id => repeat('w', 257)", "1 to 256 characters", "default"),
        (
            "'a.b', '{}', object_type => repeat('t', 129)",
            "object_type of a.b has 129 characters",
            "as in deal",
        ),
        ("'a.b', '{}', object_id => repeat('i', 513)", "object_id of a.b has 513 characters", "primary key"),
        ("'a.b', '{}', idempotency_key => repeat('k', 257)", "idempotency_key of a.b", "this one event"),
        ("'a.b', '{}', idempotency_key => ''", "idempotency_key of a.b", "names this one event"),
        ("'a.b', '{}', occurred_at => 'infinity'", "occurred_at of a.b is infinity", "now()"),
    ],
)
def test_a_wrong_argument_is_explained_and_writes_nothing(
    database_dsn: str, arguments: str, message: str, hint: str
) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError) as caught:
        query(database_dsn, f"SELECT postrider.emit({arguments})")
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")
    assert query(database_dsn, "SELECT FROM postrider.outbox") == []


def test_text_is_kept_byte_for_byte(database_dsn: str) -> None:
    text = '{ "b":1.50, "a" : "\\u00e9é",  "b": 10000000000000000000000 }'
    query(database_dsn, "SELECT postrider.emit('a.b', $1::json)", text)
    assert query(database_dsn, "SELECT data::text FROM postrider.outbox")[0]["data"] == text


@pytest.mark.parametrize(
    ("arguments", "data", "previous"),
    [
        # What has no type goes to json, which keeps the bytes.
        ("'a.b', '{\"b\":1,\"a\": 2}'", '{"b":1,"a": 2}', None),
        ("type => 'a.b', data => '{\"b\":1}'", '{"b":1}', None),
        ("'a.b'::text, '{\"b\":1}'", '{"b":1}', None),
        ("'a.b'::varchar, '{\"b\":1}', '{\"c\":1}'", '{"b":1}', '{"c":1}'),
        ("'a.b', data => '{\"b\":1}', actor => '{}'::json", '{"b":1}', None),
        ("'a.b', '{\"b\":1}'::json, '{\"c\":1}'", '{"b":1}', '{"c":1}'),
        ("'a.b', '{\"b\":1,\"a\":2}'::jsonb", '{"a": 2, "b": 1}', None),
        ("'a.b'::text, jsonb_build_object('b', 1), '{\"c\":1}'", '{"b": 1}', '{"c": 1}'),
        ("'a.b'::varchar, data => to_jsonb(t), previous_attributes => NULL", '{"n": 1}', None),
        ("'a.b', to_jsonb(t), object_id => '7', related => '{}', occurred_at => now()", '{"n": 1}', None),
    ],
)
def test_it_takes_json_and_jsonb(database_dsn: str, arguments: str, data: str, previous: str | None) -> None:
    rows = query(database_dsn, f"SELECT postrider.emit({arguments}) AS id FROM (SELECT 1 AS n) AS t")
    assert rows[0]["id"].startswith("evt_")
    stored = query(
        database_dsn, "SELECT data::text, previous_attributes::text AS previous FROM postrider.outbox"
    )
    assert (stored[0]["data"], stored[0]["previous"]) == (data, previous)


def test_parameters_whose_type_a_driver_leaves_open_are_json(database_dsn: str) -> None:
    text = '{"b":1, "a":2}'
    query(database_dsn, "SELECT postrider.emit($1, $2)", "a.b", text)
    with psycopg.connect(database_dsn) as connection:
        connection.execute("SELECT postrider.emit(%s, %s)", ("a.b", text))
        connection.execute("SELECT postrider.emit(%s, %s)", ("a.b", Jsonb({"b": 1})))
    stored = query(database_dsn, "SELECT data::text FROM postrider.outbox ORDER BY id")
    assert [row["data"] for row in stored] == [text, text, '{"b": 1}']


def test_a_rollback_leaves_nothing(database_dsn: str) -> None:
    async def story(connection: Connection) -> None:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(EMIT)
        await transaction.rollback()
        assert await connection.fetchval("SELECT count(*) FROM postrider.pending") == 0

    run(database_dsn, 1, story)


def test_it_works_from_psycopg_inside_a_transaction_with_other_work(database_dsn: str) -> None:
    with psycopg.connect(database_dsn) as connection:
        connection.execute("CREATE TABLE deals (id text)")
        connection.execute("INSERT INTO deals VALUES ('dl_1')")
        row = connection.execute(
            """SELECT postrider.emit(%(type)s, data => %(data)s, object_type => 'deal', object_id => %(id)s,
                                     workspace_id => 'ws_1', actor => '{"id":"1-users"}'::json)""",
            {"type": "deal.created", "data": Json({"id": "dl_1"}), "id": "dl_1"},
        ).fetchone()
    assert row is not None
    stored = query(
        database_dsn, "SELECT 'evt_' || replace(id::text, '-', '') AS id, workspace_id FROM postrider.outbox"
    )
    assert (stored[0]["id"], stored[0]["workspace_id"]) == (row[0], "ws_1")


def test_an_idempotency_key_names_one_event_of_its_workspace(database_dsn: str) -> None:
    async def story(connection: Connection) -> None:
        async def emit(workspace: str) -> str:
            event_id: str = await connection.fetchval(
                "SELECT postrider.emit('a.b', '{}', workspace_id => $1, idempotency_key => 'k')", workspace
            )
            return event_id

        first = await emit("one")
        assert await emit("one") == first
        assert await emit("two") != first
        assert await connection.fetchval("SELECT count(*) FROM postrider.outbox") == 2
        assert await connection.fetchval("SELECT count(*) FROM postrider.pending") == 2

    run(database_dsn, 1, story)


def test_the_same_key_at_once_waits_and_gets_the_first_id(database_dsn: str) -> None:
    async def story(first: Connection, second: Connection, other: Connection) -> None:
        statement = "SELECT postrider.emit('a.b', '{}', idempotency_key => $1)"
        transaction = first.transaction()
        await transaction.start()
        event_id = await first.fetchval(statement, "k")
        waiting = asyncio.create_task(second.fetchval(statement, "k"))
        # Another key, and no key, wait for nobody.
        await asyncio.wait_for(other.fetchval(statement, "other"), 5)
        await asyncio.wait_for(other.fetchval(EMIT), 5)
        assert not waiting.done()
        await transaction.commit()
        assert await waiting == event_id

    run(database_dsn, 3, story)


def test_an_open_transaction_that_emitted_blocks_nobody(database_dsn: str) -> None:
    async def story(first: Connection, second: Connection) -> None:
        async with first.transaction():
            await first.execute(EMIT)
            await asyncio.wait_for(second.execute(EMIT), 5)
            assert await second.fetchval("SELECT count(*) FROM postrider.pending") == 1

    run(database_dsn, 2, story)


def test_the_emitter_role_may_emit_and_nothing_else(database_dsn: str) -> None:
    async def story(connection: Connection) -> None:
        await connection.execute("SET ROLE postrider_emitter")
        assert (await connection.fetchval(EMIT)).startswith("evt_")
        as_jsonb = "SELECT postrider.emit('deal.updated', jsonb_build_object('id', 'dl_1'))"
        assert (await connection.fetchval(as_jsonb)).startswith("evt_")
        for forbidden in (
            "SELECT FROM postrider.outbox",
            "SELECT FROM postrider.endpoint_secret",
            "INSERT INTO postrider.outbox (type, data) VALUES ('a', '{}')",
            "SELECT postrider.drop_partition('outbox', current_date)",
            "SELECT postrider.new_event_id()",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(forbidden)

    run(database_dsn, 1, story)


def test_a_hostile_search_path_changes_nothing(database_dsn: str) -> None:
    async def story(connection: Connection) -> None:
        await connection.execute(
            """CREATE SCHEMA evil;
               CREATE FUNCTION evil.length(text) RETURNS integer LANGUAGE plpgsql AS
                 $$BEGIN RAISE EXCEPTION 'hijacked'; END$$;
               CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS
                 $$BEGIN RAISE EXCEPTION 'hijacked'; END$$;
               GRANT USAGE ON SCHEMA evil TO postrider_emitter;
               SET ROLE postrider_emitter;
               SET search_path = evil, pg_catalog"""
        )
        assert (await connection.fetchval(EMIT)).startswith("evt_")
        assert await connection.fetchval(
            "SELECT postrider.emit('a.b', pg_catalog.to_jsonb(t)) FROM (SELECT 1) AS t"
        )

    run(database_dsn, 1, story)


def test_it_works_when_no_partition_was_made(database_dsn: str) -> None:
    query(
        database_dsn,
        """SELECT postrider.drop_partition(p, day) FROM unnest(ARRAY['outbox', 'delivery', 'attempt']) AS p,
                  LATERAL postrider.partition_days(p) AS day""",
    )
    query(database_dsn, EMIT)
    assert len(query(database_dsn, "SELECT FROM postrider.outbox_default")) == 1


def test_notifications_are_sent_only_while_a_daemon_sleeps(database_dsn: str) -> None:
    async def story(writer: Connection, listener: Connection) -> None:
        heard: list[str] = []
        await listener.add_listener("postrider_wake", lambda *_: heard.append("wake"))
        await writer.execute(EMIT)
        await writer.execute(
            """INSERT INTO postrider.daemon (hostname, pid, version, started_at, heartbeat_at, idle)
               VALUES ('h', 1, '0', now(), now(), true)"""
        )
        await listener.execute("SELECT 1")
        assert heard == []
        await writer.execute(EMIT)
        await listener.execute("SELECT 1")
        assert heard == ["wake"]

    run(database_dsn, 2, story)


def test_one_statement_queues_a_thousand_events(database_dsn: str) -> None:
    query(
        database_dsn,
        """INSERT INTO postrider.outbox (type, data)
           SELECT 'a.b', json_build_object('n', n) FROM generate_series(1, 1000) AS n""",
    )
    assert query(database_dsn, "SELECT count(*) FROM postrider.pending")[0][0] == 1000
    assert query(database_dsn, "SELECT count(DISTINCT id) FROM postrider.outbox")[0][0] == 1000

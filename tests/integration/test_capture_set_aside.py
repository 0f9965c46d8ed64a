"""Rows of which no event can be made at once: the CRM hardly waits, nothing is lost, events come later."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import pytest

from postrider.store import capture_recovery
from postrider.store.capture_recovery import Patience
from tests.integration.test_capture import DEALS, SIMPLE, Crm, crm_of, types
from tests.support.cli import Cli
from tests.support.stage import eventually, staged

LOCK_TIMEOUT_S = 1.0


@asynccontextmanager
async def locked(dsn: str, *tables: str) -> AsyncIterator[None]:
    """Another session holds the tables as an ALTER TABLE does."""
    other = await asyncpg.connect(dsn)
    try:
        async with other.transaction():
            for table in tables:
                await other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await other.close()


async def recovered(crm: Crm) -> tuple[int, int, int]:
    batch = await crm.store.recover(limit=1000, after=0)
    return batch.rows, batch.events, batch.kept


async def test_a_statement_waits_once_for_a_locked_outbox_and_no_event_is_lost(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(DEALS)
        await crm.does(
            "INSERT INTO crm.tags VALUES (1, 'b')",
            "INSERT INTO crm.deals (id, workspace_id, title, client_id, price, custom) "
            "SELECT n, 'ws_1', 'old', 7, 1.50, '{\"b\": 1.0, \"a\":2}' FROM generate_series(1, 12) AS n",
            "SET crm.user_id = '1'",
        )
        statements = [
            "UPDATE crm.deals SET title = 'new', price = price * 10",
            "INSERT INTO crm.deals (id, workspace_id, title) VALUES (13, 'ws_2', 'Äcme \"x\"')",
            "DELETE FROM crm.deals WHERE id = 1",
            "UPDATE crm.deals SET status = 'won', client_id = 8 WHERE id = 2",
        ]
        expected = await crm.does("BEGIN", *statements)
        await crm.connection.execute("ROLLBACK")
        async with locked(database_dsn, "postrider.outbox"):
            for statement in statements:
                started = monotonic()
                await crm.connection.execute(statement)
                assert monotonic() - started < 3 * LOCK_TIMEOUT_S, statement
            assert len(await crm.rejected()) == 15
            assert await recovered(crm) == (0, 0, 15)
        await crm.connection.execute("RESET crm.user_id; DELETE FROM postrider.outbox")
        assert await recovered(crm) == (15, 15, 0)
        assert not await crm.rejected()
        events = await crm.events()

        def shown(events: list[dict[str, Any]]) -> list[str]:
            return [
                json.dumps(
                    {name: event[name] for name in event if name not in ("id", "occurred_at")}, indent=1
                )
                for event in sorted(events, key=lambda event: event["id"])
            ]

        assert shown(events) == shown(expected)


async def test_recovered_events_keep_the_time_and_the_order_of_the_changes(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        async with locked(database_dsn, "postrider.pending"):
            for number in range(4):
                await crm.connection.execute(f"INSERT INTO crm.deals (id) VALUES ({number})")
        set_aside = await crm.connection.fetch("SELECT at FROM postrider.capture_rejected ORDER BY id")
        assert await recovered(crm) == (4, 4, 0)
        events = await crm.connection.fetch(
            "SELECT object_id, occurred_at FROM postrider.outbox ORDER BY id, object_id"
        )
        assert [event["object_id"] for event in events] == ["0", "1", "2", "3"]
        assert [event["occurred_at"] for event in events] == [row["at"] for row in set_aside]
        assert await crm.connection.fetchval("SELECT count(*) FROM postrider.pending") == 4


async def test_a_lock_on_a_looked_up_table_delays_events_and_not_the_crm(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(DEALS)
        async with locked(database_dsn, "crm.tags"):
            started = monotonic()
            await crm.connection.execute("INSERT INTO crm.deals (id) SELECT generate_series(1, 5)")
            assert monotonic() - started < 3 * LOCK_TIMEOUT_S
        assert await recovered(crm) == (5, 5, 0)


async def test_the_crm_goes_on_when_the_set_aside_rows_are_locked_too(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        said: list[str] = []
        crm.connection.add_log_listener(lambda _, message: said.append(str(message)))
        await crm.connection.execute("SET client_min_messages = log")
        async with locked(database_dsn, "postrider.outbox", "postrider.capture_rejected"):
            started = monotonic()
            await crm.connection.execute(
                "INSERT INTO crm.deals (id, title) SELECT n, 'kept' FROM generate_series(1, 12) n"
            )
            assert monotonic() - started < 3 * LOCK_TIMEOUT_S
        assert await crm.connection.fetchval("SELECT count(*) FROM crm.deals") == 12
        assert sum("lost a row" in each and '"title":"kept"' in each for each in said) == 12


async def test_awkward_values_survive_being_set_aside(database_dsn: str) -> None:
    tables = """
        CREATE SCHEMA crm;
        CREATE TYPE crm.mood AS ENUM ('good', 'so "so"');
        CREATE TYPE crm.address AS (street text, number integer);
        CREATE DOMAIN crm.blob AS json;
        CREATE TABLE crm.deals (id integer PRIMARY KEY, m crm.mood, a crm.address, b crm.blob, j jsonb,
          n numeric(12, 2), f float8, ts timestamptz, i interval, raw bytea, list text[], grid integer[],
          parts crm.address[], t text NOT NULL, c char(5), r int4range);
    """
    section = """
        [[capture]]
        table = "crm.deals"
        object_type = "deal"
        columns = ["id", "m", "a", "b", "j", "n", "f", "ts", "i", "raw", "list", "grid", "parts", "t", "c",
                   "r"]
    """
    insert = r"""INSERT INTO crm.deals VALUES
        (1, 'so "so"', '("a, b",)', '{ "z" : 1.50,  "a":"ü" }', '{"k": null}', 12.5, 0.1::float8 + 0.2,
         'infinity', '1 mon -2 days', '\x00ff', ARRAY['a,b', NULL, '"'], '{{1,2},{3,4}}',
         ARRAY[('x', 1)::crm.address, NULL], '', 'ab', '[1,)'),
        (2, NULL, NULL, NULL, 'null', NULL, 'NaN',
         NULL, NULL, '', '{}', NULL, NULL, E'\\\n\t', NULL, NULL)"""
    async with crm_of(database_dsn, tables) as crm:
        await crm.apply(section)
        expected = await crm.does("SET DateStyle = 'German'; SET extra_float_digits = 0", "BEGIN", insert)
        await crm.connection.execute("ROLLBACK")
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute(insert)
        assert await recovered(crm) == (2, 2, 0)
        events = await crm.events()
        assert [event["data"] for event in events] == [event["data"] for event in expected]


async def test_rows_that_still_make_no_event_stay_and_are_tried_less_and_less_often(
    database_dsn: str,
) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        await crm.does("INSERT INTO crm.deals (id, title) VALUES (1, repeat('x', 2000000)), (2, 'fine')")
        await crm.store.tell_rejections()
        waits = []
        for _ in range(3):
            await crm.connection.execute("UPDATE postrider.capture_rejected SET due = now()")
            batch = await crm.store.recover(limit=10)
            assert (batch.rows, batch.kept) == (0, 1)
            assert (await crm.store.recover(limit=10)).last is None, "it is not due yet"
            row = await crm.connection.fetchrow(
                "SELECT extract(epoch FROM due - now()) AS wait, logged FROM postrider.capture_rejected"
            )
            assert row is not None
            waits.append(float(row["wait"]))
            assert row["logged"], "the same reason is told once"
        assert waits[0] < waits[1] < waits[2]
        without_title = SIMPLE.replace('"title", ', "")
        await crm.apply(without_title)
        assert await recovered(crm) == (1, 1, 0)


async def test_an_id_or_workspace_that_is_too_long_is_set_aside_with_that_reason(database_dsn: str) -> None:
    section = SIMPLE.replace(
        'object_type = "deal"', 'object_type = "deal"\nobject_id = "notes"\nworkspace = "status"'
    )
    async with crm_of(database_dsn) as crm:
        await crm.apply(section)
        events = await crm.does(
            "INSERT INTO crm.deals (id, notes, status) VALUES (1, repeat('ü', 512), repeat('w', 256)), "
            "(2, repeat('x', 513), 'w'), (3, 'x', repeat('w', 257))"
        )
        assert [event["data"]["id"] for event in events] == [1]
        assert await crm.rejected() == [
            "the workspace has 257 characters; the limit is 256",
            "the object id has 513 characters; the limit is 512",
        ]


async def test_rows_stay_set_aside_when_their_capture_is_dropped(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("INSERT INTO crm.deals (id) VALUES (1)")
        await crm.store.drop(None)
        assert await recovered(crm) == (0, 0, 0)
        assert len(await crm.rejected()) == 1
        await crm.apply(SIMPLE)
        assert await recovered(crm) == (1, 1, 0)
        await crm.does("INSERT INTO crm.deals (id, title) VALUES (2, repeat('x', 2000000))")
        await crm.store.drop(None, with_rejected=True)
        assert not await crm.rejected()


async def test_a_row_whose_key_column_was_renamed_is_told_as_changed(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        await crm.does("INSERT INTO crm.deals (id, title) VALUES (1, 'old')")
        await crm.connection.execute("ALTER TABLE crm.deals RENAME COLUMN id TO number")
        assert not await crm.does("UPDATE crm.deals SET title = 'new'")
        rows = await crm.connection.fetch(
            """SELECT old_row->>'title' AS old, new_row->>'title' AS new
               FROM postrider.capture_rejected ORDER BY id"""
        )
        assert [tuple(row) for row in rows] == [("old", "new")], "its primary key has another name"
        await crm.apply(SIMPLE.replace('"deal"', '"deal"\nkey = "number"').replace('"id"', '"number"'))
        assert await recovered(crm) == (1, 1, 0)
        (event,) = await crm.events()
        assert (event["type"], event["object_id"]) == ("deal.updated", "1")
        assert event["previous_attributes"] == {"title": "old"}


async def test_rows_without_any_key_are_kept_as_they_were(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        await crm.does("INSERT INTO crm.deals (id, title) VALUES (1, 'old')")
        await crm.connection.execute("ALTER TABLE crm.deals DROP COLUMN id")
        assert not await crm.does("UPDATE crm.deals SET title = 'new'")
        rows = await crm.connection.fetch(
            """SELECT old_row->>'title' AS old, new_row->>'title' AS new
               FROM postrider.capture_rejected ORDER BY id"""
        )
        assert [tuple(row) for row in rows] == [("old", None), (None, "new")]
        assert await recovered(crm) == (0, 0, 2)


async def test_a_capture_that_an_older_release_applied_sets_rows_aside(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        await crm.connection.execute(
            """SET ROLE postrider_capture;
               SELECT postrider.set_aside('deal', 'INSERT', '1', NULL,
                 '{"id":"1","title":null,"price":null}', NULL, 'x', true);
               RESET ROLE"""
        )
        assert await recovered(crm) == (1, 1, 0)


async def test_two_daemons_recover_each_row_once(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("INSERT INTO crm.deals (id) SELECT generate_series(1, 300)")
        batches = await asyncio.gather(*(crm.store.recover(limit=1000) for _ in range(3)))
        assert sum(batch.rows for batch in batches) == 300
        assert await crm.connection.fetchval("SELECT count(*) FROM postrider.outbox") == 300


async def test_a_daemon_recovers_rows_by_itself(database_dsn: str, tmp_path: Path) -> None:
    async with crm_of(database_dsn) as crm, staged(database_dsn, tmp_path):
        await crm.apply(SIMPLE)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("INSERT INTO crm.deals (id) SELECT generate_series(1, 12)")
        count = "SELECT count(*) FROM postrider.outbox"
        await eventually(lambda: crm.connection.fetchval(count), 12)
        assert not await crm.rejected()


async def test_people_can_retry_at_once(database_dsn: str, config_file: Path) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("INSERT INTO crm.deals (id) SELECT generate_series(1, 600)")
        await crm.connection.execute("INSERT INTO crm.deals (id, title) VALUES (1000, repeat('x', 2000000))")
        await crm.connection.execute("UPDATE postrider.capture_rejected SET due = now() + interval '1 hour'")
        cli = Cli(config_file)
        done = await asyncio.to_thread(cli.json, "capture", "retry", "deal")
        assert done == {"rows": 600, "events": 600, "kept": 1, "not_applied": []}
        assert types(await crm.events())[:1] == ["deal.created"]


async def test_retry_says_what_stays_and_why(database_dsn: str, config_file: Path) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("INSERT INTO crm.deals (id) SELECT generate_series(1, 5)")
        await crm.store.drop(None)
        cli = Cli(config_file)
        done = await asyncio.to_thread(cli.json, "capture", "retry")
        assert done["kept"] == 5
        assert [(each["capture"], each["rows"]) for each in done["not_applied"]] == [("deal", 5)]
        for name, told in (("deal", "is not applied"), ("nope", "there is no capture 'nope'")):
            assert told in await asyncio.to_thread(cli, "capture", "retry", name, exit_code=2)


NOTE = """
[[capture]]
table = "crm.notes"
object_type = "note"
columns = ["id", "body"]
"""


async def test_a_capture_whose_rows_have_to_wait_holds_up_no_other(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.connection.execute("CREATE TABLE crm.notes (id bigint PRIMARY KEY, body text)")
        await crm.apply(DEALS + NOTE)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("INSERT INTO crm.deals (id) SELECT generate_series(1, 1200)")
            await crm.connection.execute("INSERT INTO crm.notes VALUES (1, 'x')")
        async with locked(database_dsn, "crm.tags"):
            batch = await crm.store.recover(limit=500)
            assert (batch.rows, batch.events) == (1, 1)
            assert types(await crm.events()) == ["note.created"]
        while (await crm.store.recover(limit=500)).rows:
            pass
        assert not await crm.rejected()
        rows = await crm.connection.fetch(
            "SELECT object_id FROM postrider.outbox WHERE object_type = 'deal' ORDER BY id"
        )
        assert len(rows) == 1200


async def test_a_bad_row_costs_the_others_few_attempts(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute(
                "INSERT INTO crm.deals (id, title) SELECT n, repeat('x', CASE n WHEN 300 THEN 2000000 END) "
                "FROM generate_series(1, 500) AS n"
            )
        statements: list[str] = []
        recovery = capture_recovery._Batch._evaluate

        async def counted(batch: capture_recovery._Batch, capture: str, ids: Any) -> Any:
            statements.append(capture)
            return await recovery(batch, capture, ids)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(capture_recovery._Batch, "_evaluate", counted)
            batch = await crm.store.recover(limit=500)
        assert (batch.rows, batch.kept) == (499, 1)
        assert len(statements) < 25


async def test_a_row_that_takes_too_long_is_put_off_and_says_so(database_dsn: str) -> None:
    patience = Patience(statement_s=0.5)
    tables = """
        CREATE SCHEMA crm;
        CREATE TYPE crm.mood AS ENUM ('quick', 'slow');
        CREATE FUNCTION crm.as_json(crm.mood) RETURNS json LANGUAGE plpgsql AS $$
          BEGIN
            IF $1 = 'slow' AND current_setting('crm.patient', true) IS DISTINCT FROM 'no' THEN
              PERFORM pg_sleep(60);
            END IF;
            RETURN to_json($1::text);
          END $$;
        CREATE CAST (crm.mood AS json) WITH FUNCTION crm.as_json(crm.mood);
        CREATE TABLE crm.deals (id bigint PRIMARY KEY, mood crm.mood);
    """
    section = SIMPLE.replace('"id", "title", "price"', '"id", "mood"')
    async with crm_of(database_dsn, tables) as crm:
        await crm.apply(section)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("SET crm.patient = 'no'")
            await crm.connection.execute(
                "INSERT INTO crm.deals SELECT n, CASE n WHEN 5 THEN 'slow' ELSE 'quick' END::crm.mood "
                "FROM generate_series(1, 8) AS n"
            )
        rows = kept = 0
        while (batch := await crm.store.recover(limit=100, budget_s=1.0, patience=patience)).last is not None:
            rows, kept = rows + batch.rows, kept + batch.kept
        assert (rows, kept) == (7, 1)
        assert await crm.rejected() == ["it takes longer than 0.5 s"]


async def test_rows_of_dropped_captures_cost_no_look(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        await crm.connection.execute(
            """INSERT INTO postrider.capture_rejected (capture, operation, reason, new_row, due)
               SELECT 'gone', 'INSERT', 'x', '{}', now() FROM generate_series(1, 20000);
               ANALYZE postrider.capture_rejected"""
        )
        await crm.connection.execute("SET enable_seqscan = off")  # as in the daemon's sessions
        plan = await crm.connection.fetch(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
            + capture_recovery._DUE.replace("$1", "NULL::text").replace("$2", "500").replace("$3", "8000000")
        )
        top = json.loads(plan[0][0])[0]["Plan"]
        assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 100


async def test_rescue_does_not_wait_for_recovery(database_dsn: str, tmp_path: Path) -> None:
    tables = """
        CREATE SCHEMA crm;
        CREATE TYPE crm.mood AS ENUM ('slow');
        CREATE FUNCTION crm.as_json(crm.mood) RETURNS json LANGUAGE plpgsql AS $$
          BEGIN
            IF current_setting('crm.patient', true) = 'no' THEN RAISE 'not now'; END IF;
            PERFORM pg_sleep(9);
            RETURN to_json($1::text);
          END $$;
        CREATE CAST (crm.mood AS json) WITH FUNCTION crm.as_json(crm.mood);
        CREATE TABLE crm.deals (id bigint PRIMARY KEY, mood crm.mood);
    """
    async with crm_of(database_dsn, tables) as crm, staged(database_dsn, tmp_path) as stage:
        await crm.apply(SIMPLE.replace('"id", "title", "price"', '"id", "mood"'))
        await crm.connection.execute("SET crm.patient = 'no'")
        await crm.connection.execute("INSERT INTO crm.deals VALUES (1, 'slow'), (2, 'slow'), (3, 'slow')")
        evaluating = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%postrider.evaluate(%' "
        evaluating += "AND state = 'active' AND pid <> pg_backend_pid() AND datname = current_database()"
        await eventually(lambda: crm.connection.fetchval(evaluating), True)
        async with asyncio.timeout(8):
            await stage.daemon.services.janitor.run_once()
        assert await crm.connection.fetchval(evaluating), "recovery was over"

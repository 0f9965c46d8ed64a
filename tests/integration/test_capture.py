"""Capture: what the CRM's own statements leave in the outbox, and what they never feel of it."""

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from postrider.domain.capture import Capture
from postrider.domain.capture_sections import parse_captures
from postrider.domain.capture_steps import Step
from postrider.domain.errors import UsageError
from postrider.store.database import Connection, Database, DatabaseError
from tests.support.captures import Captures
from tests.support.stage import staged

NOW = datetime(2026, 3, 15, tzinfo=UTC)
TABLES = """
CREATE SCHEMA crm;
CREATE TABLE crm.users (id bigint PRIMARY KEY, name text);
CREATE TABLE crm.clients (id bigint PRIMARY KEY, name text, "VAT number" text);
CREATE TABLE crm.tags (deal_id bigint, name text);
CREATE TABLE crm.deals (
  id bigint PRIMARY KEY, workspace_id text, title text, price numeric(12, 2), stage_id integer,
  status text DEFAULT 'open', client_id bigint REFERENCES crm.clients, custom json, place point,
  closed_at timestamptz, notes text, updated_at timestamptz DEFAULT now()
);
INSERT INTO crm.users VALUES (1, 'Bob');
INSERT INTO crm.clients VALUES (7, 'Acme', 'X1'), (8, 'Other', NULL);
"""
DEALS = """
[[capture]]
table = "crm.deals"
object_type = "deal"
workspace = "workspace_id"
timestamps = "milliseconds"
actor = { table = "crm.users", where = { id = { setting = "crm.user_id" } }, columns = ["id", "name"] }
[capture.related]
tags = { table = "crm.tags", where = { deal_id = "id" }, column = "name", many = true, order = "name" }
[capture.columns]
id = "id"
title = "title"
price = "price"
kind = { value = "deal" }
client.table = "crm.clients"
client.where = { id = "client_id" }
client.columns = { name = "name", vat = "VAT number" }
money = { columns = { amount = "price", currency = { value = "EUR" } } }
stage = "stage_id"
custom = "custom"
closedAt = "closed_at"
[[capture.derived]]
type = "deal.stage_changed"
column = "stage_id"
[[capture.derived]]
type = "deal.won"
column = "status"
becomes = "won"
instead = true
[[capture.derived]]
type = "deal.closed"
column = "closed_at"
when = "set"
on_insert = true
"""
SIMPLE = """
[[capture]]
table = "crm.deals"
object_type = "deal"
columns = ["id", "title", "price"]
"""


def captures(text: str) -> tuple[Capture, ...]:
    parsed, mistakes = parse_captures(tomllib.loads(text)["capture"])
    assert not mistakes
    return parsed


class Crm:
    def __init__(self, connection: Connection, store: Captures) -> None:
        self.connection = connection
        self.store = store

    async def apply(self, text: str) -> list[Step]:
        return await self.store.apply(captures(text), NOW)

    async def does(self, *statements: str) -> list[dict[str, Any]]:
        """Run statements of the CRM; return the events that they left, JSON parsed."""
        await self.connection.execute("DELETE FROM postrider.outbox")
        for statement in statements:
            await self.connection.execute(statement)
        return await self.events()

    async def events(self) -> list[dict[str, Any]]:
        rows = await self.connection.fetch("SELECT * FROM postrider.outbox ORDER BY id, type")
        names = ("data", "previous_attributes", "actor", "related")
        return [
            {**row, **{name: json.loads(row[name]) if row[name] else None for name in names}} for row in rows
        ]

    async def rejected(self) -> list[str]:
        return [each.reason for each in await self.store.rejections()]


@asynccontextmanager
async def crm_of(dsn: str, tables: str = TABLES) -> AsyncIterator[Crm]:
    database = Database(dsn, pool_size=2, keyed=False)
    await database.open()
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(tables)
        yield Crm(connection, Captures(database))
    finally:
        await connection.close()
        await database.close()


def types(events: list[dict[str, Any]]) -> list[str]:
    return sorted(event["type"] for event in events)


async def test_rows_become_events_as_the_section_says(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(DEALS)
        insert = """INSERT INTO crm.deals (id, workspace_id, title, price, stage_id, client_id, custom)
                    VALUES (1, 'ws_1', 'Äcme "x"', 12.50, 3, 7, '{"b": 1, "a": [2]}')"""
        await crm.does("INSERT INTO crm.tags VALUES (1, 'b'), (1, 'a')", "SET crm.user_id = '1'")
        (created,) = await crm.does(insert)
        assert created["type"] == "deal.created"
        assert (created["object_type"], created["object_id"]) == ("deal", "1")
        assert created["workspace_id"] == "ws_1"
        assert json.dumps(created["data"], ensure_ascii=False) == json.dumps(
            {
                "id": 1,
                "title": 'Äcme "x"',
                "price": 12.50,
                "kind": "deal",
                "client": {"name": "Acme", "vat": "X1"},
                "money": {"amount": 12.50, "currency": "EUR"},
                "stage": 3,
                "custom": {"b": 1, "a": [2]},
                "closedAt": None,
            },
            ensure_ascii=False,
        )
        assert created["previous_attributes"] is None
        assert created["actor"] == {"id": 1, "name": "Bob"}
        assert created["related"] == {"tags": ["a", "b"]}
        (updated,) = await crm.does("UPDATE crm.deals SET price = 13, client_id = 8, notes = 'x'")
        assert updated["type"] == "deal.updated"
        assert updated["previous_attributes"] == {
            "price": 12.5,
            "client": {"name": "Acme", "vat": "X1"},
            "money": {"amount": 12.5, "currency": "EUR"},
        }
        assert updated["data"]["client"] == {"name": "Other", "vat": None}
        (deleted,) = await crm.does("DELETE FROM crm.deals")
        assert (deleted["type"], deleted["data"]["title"]) == ("deal.deleted", 'Äcme "x"')
        assert not await crm.rejected()


async def test_an_update_that_changes_no_captured_column_emits_nothing(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(DEALS)
        await crm.does("INSERT INTO crm.deals (id, title, custom) VALUES (1, 'a', '{}'), (2, 'b', NULL)")
        assert not await crm.does("UPDATE crm.deals SET notes = 'new', updated_at = now(), title = title")
        assert not await crm.does("UPDATE crm.deals SET title = 'x' WHERE false")
        assert not await crm.does("DELETE FROM crm.deals WHERE false")


async def test_derived_events_come_with_or_instead_of_updated(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(DEALS)
        assert types(
            await crm.does("INSERT INTO crm.deals (id, closed_at) VALUES (1, NULL), (2, now())")
        ) == ["deal.closed", "deal.created", "deal.created"]
        assert types(await crm.does("UPDATE crm.deals SET stage_id = 2 WHERE id = 1")) == [
            "deal.stage_changed",
            "deal.updated",
        ]
        won = "UPDATE crm.deals SET status = 'won', price = 1 WHERE id = 1"
        assert types(await crm.does(won)) == ["deal.won"]
        assert not await crm.does("UPDATE crm.deals SET status = 'won' WHERE id = 1")
        assert types(await crm.does("UPDATE crm.deals SET status = 'lost' WHERE id = 1")) == []
        (_, closed) = await crm.does(
            "UPDATE crm.deals SET closed_at = '2026-03-15 10:30:00.5+02' WHERE id = 1"
        )
        assert closed["type"] == "deal.closed"
        assert closed["data"]["closedAt"] == "2026-03-15T08:30:00.500Z"
        assert closed["previous_attributes"] == {"closedAt": None}
        assert types(await crm.does("UPDATE crm.deals SET closed_at = NULL")) == ["deal.updated"] * 2


async def test_an_update_after_which_the_event_would_say_the_same_emits_nothing(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(DEALS)
        await crm.does(
            "INSERT INTO crm.clients VALUES (9, 'Acme', 'X1')",
            "INSERT INTO crm.deals (id, client_id, closed_at) VALUES (1, 7, '2026-03-15 10:00:00.0001Z')",
        )
        assert not await crm.does(
            "UPDATE crm.deals SET client_id = 9, closed_at = '2026-03-15 10:00:00.0002Z', price = price"
        )
        (updated,) = await crm.does("UPDATE crm.deals SET closed_at = '2026-03-15 10:00:00.001Z'")
        assert updated["previous_attributes"] == {"closedAt": "2026-03-15T10:00:00.000Z"}


async def test_previous_attributes_hold_just_what_looks_different(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(DEALS)
        await crm.does(
            "INSERT INTO crm.clients VALUES (9, 'Acme', 'X1')",
            "INSERT INTO crm.deals (id, client_id, closed_at) VALUES (1, 7, '2026-03-15 10:00:00.0001Z')",
        )
        (updated,) = await crm.does(
            "UPDATE crm.deals SET client_id = 9, closed_at = '2026-03-15 10:00:00.0002Z', title = 'x'"
        )
        assert updated["previous_attributes"] == {"title": None}
        (won,) = await crm.does("UPDATE crm.deals SET status = 'won'")
        assert (won["type"], won["previous_attributes"]) == ("deal.won", None)


async def test_a_statement_on_many_rows_is_one_insert(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(DEALS)
        await crm.connection.execute(
            """CREATE TABLE inserts (n integer); GRANT INSERT ON inserts TO PUBLIC;
               CREATE FUNCTION count_insert() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO public.inserts VALUES (1); RETURN NULL; END';
               CREATE TRIGGER count_insert AFTER INSERT ON postrider.outbox
                 FOR EACH STATEMENT EXECUTE FUNCTION count_insert();"""
        )
        await crm.does(
            "INSERT INTO crm.deals (id, title) SELECT n, n::text FROM generate_series(1, 10000) AS n"
        )
        events = await crm.does("UPDATE crm.deals SET title = title || '!', stage_id = 1 WHERE id <= 5000")
        assert len(events) == 10_000
        assert await crm.connection.fetchval("SELECT count(*) FROM inserts") == 2


async def test_upsert_merge_and_a_changed_key(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        upsert = """INSERT INTO crm.deals (id, title) VALUES (1, 'new'), (2, 'new')
                    ON CONFLICT (id) DO UPDATE SET title = excluded.title"""
        assert types(await crm.does("INSERT INTO crm.deals (id, title) VALUES (1, 'old')", upsert)) == [
            "deal.created",
            "deal.created",
            "deal.updated",
        ]
        events = await crm.does("UPDATE crm.deals SET id = id + 10, title = 'moved'")
        assert types(events) == ["deal.created", "deal.created", "deal.deleted", "deal.deleted"]
        assert {event["object_id"] for event in events} == {"1", "2", "11", "12"}
        assert not await crm.rejected()


async def test_rolled_back_statements_leave_nothing(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        assert not await crm.does("BEGIN", "INSERT INTO crm.deals (id) VALUES (1)", "ROLLBACK")


async def test_bad_rows_are_set_aside_and_the_others_become_events(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        events = await crm.does(
            "INSERT INTO crm.deals (id, title) SELECT n, repeat('x', CASE n WHEN 3 THEN 2000000 ELSE 5 END)"
            " FROM generate_series(1, 5) AS n"
        )
        assert [event["object_id"] for event in events] == ["1", "2", "4", "5"]
        (reason,) = await crm.rejected()
        assert "the limit is 1048576" in reason
        assert await crm.connection.fetchval("SELECT count(*) FROM crm.deals") == 5
        assert types(await crm.does("UPDATE crm.deals SET title = repeat('y', 2000000) WHERE id = 1")) == []
        assert types(await crm.does("DELETE FROM crm.deals")) == ["deal.deleted"] * 3
        assert len(await crm.rejected()) == 4


async def test_the_crm_goes_on_when_a_column_is_gone(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        await crm.connection.execute("ALTER TABLE crm.deals DROP COLUMN price")
        assert not await crm.does(
            "INSERT INTO crm.deals (id) VALUES (1), (2)", "UPDATE crm.deals SET title = 'x'"
        )
        assert await crm.connection.fetchval("SELECT count(*) FROM crm.deals WHERE title = 'x'") == 2
        reasons = await crm.rejected()
        assert len(reasons) == 4
        assert all("price" in reason for reason in reasons)
        with pytest.raises(UsageError, match=r"columns\.price: crm\.deals has no column price"):
            await crm.store.plan(captures(SIMPLE))


async def test_the_crm_goes_on_when_nothing_of_postrider_works(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        await crm.connection.execute("DROP TABLE postrider.capture_rejected, postrider.pending CASCADE")
        await crm.connection.execute("INSERT INTO crm.deals (id) VALUES (1)")
        assert await crm.connection.fetchval("SELECT count(*) FROM crm.deals") == 1
        await crm.connection.execute("DROP SCHEMA postrider CASCADE")
        await crm.connection.execute("INSERT INTO crm.deals (id) VALUES (2)")


async def test_the_crm_waits_only_shortly_for_a_locked_outbox(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        other = await asyncpg.connect(database_dsn)
        try:
            transaction = other.transaction()
            await transaction.start()
            await other.execute("LOCK TABLE postrider.outbox IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(20):
                await crm.connection.execute("INSERT INTO crm.deals (id) VALUES (1)")
            await transaction.rollback()
        finally:
            await other.close()
        assert ["lock timeout" in reason for reason in await crm.rejected()] == [True]


async def test_a_crm_user_without_rights_on_postrider_may_write(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(DEALS)
        await crm.connection.execute(
            """DROP ROLE IF EXISTS postrider_test_crm_user;
               CREATE ROLE postrider_test_crm_user;
               GRANT USAGE ON SCHEMA crm TO postrider_test_crm_user;
               GRANT SELECT, INSERT, UPDATE, DELETE ON crm.deals TO postrider_test_crm_user"""
        )
        try:
            events = await crm.does(
                "SET ROLE postrider_test_crm_user",
                "INSERT INTO crm.deals (id, client_id) VALUES (1, 7)",
                "RESET ROLE",
            )
            assert [event["data"]["client"]["name"] for event in events] == ["Acme"]
        finally:
            await crm.connection.execute(
                "DROP OWNED BY postrider_test_crm_user; DROP ROLE postrider_test_crm_user"
            )


async def test_awkward_tables(database_dsn: str) -> None:
    wide = ", ".join(f'"column {number}" integer' for number in range(150))
    tables = f"""
        CREATE TABLE "Odd $postrider$ ""T"" x" (id uuid, part integer, PRIMARY KEY (id, part));
        CREATE TABLE wide (id bigint PRIMARY KEY, {wide});
        CREATE TABLE parted (id bigint, at date, name text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
        CREATE TABLE kinds (id bigint PRIMARY KEY, p point, j json, a integer[], ja json[],
                            t timestamp, r int4range, n numeric, f float8);
    """
    columns = "\n".join(f'"n{number}" = "column {number}"' for number in range(150))
    sections = f"""
        [[capture]]
        table = 'public."Odd $postrider$ ""T"" x"'
        object_type = "odd"
        key = ["id", "part"]
        columns = ["id", "part"]
        [[capture]]
        table = "wide"
        object_type = "wide"
        [capture.columns]
        {columns}
        [[capture]]
        table = "parted"
        object_type = "parted"
        key = ["id", "at"]
        columns = ["id", "name", "at"]
        [[capture]]
        table = "kinds"
        object_type = "kind"
        columns = ["p", "j", "a", "ja", "t", "r", "n", "f"]
    """
    async with crm_of(database_dsn, tables) as crm:
        await crm.apply(sections)
        (event,) = await crm.does(
            """INSERT INTO "Odd $postrider$ ""T"" x" VALUES ('01957b2c-8f00-7000-8000-000000000001', 2)"""
        )
        assert event["object_id"] == "01957b2c-8f00-7000-8000-000000000001,2"
        await crm.does("INSERT INTO wide (id) VALUES (1)")
        (event,) = await crm.does('UPDATE wide SET "column 149" = 5, "column 0" = 6')
        assert event["previous_attributes"] == {"n0": None, "n149": None}
        assert types(
            await crm.does("INSERT INTO parted VALUES (1, '2026-02-01', 'a')", "UPDATE parted SET name = 'b'")
        ) == ["parted.created", "parted.updated"]
        await crm.does(
            """INSERT INTO kinds VALUES (1, '(1,2)', '{"a":1}', '{1,2}', ARRAY['{}'::json],
                                         '2026-01-01', '[1,3)', 'NaN', 'Infinity')"""
        )
        (event,) = await crm.does("UPDATE kinds SET p = '(1,3)', ja = ARRAY['[]'::json], t = 'infinity'")
        assert set(event["previous_attributes"]) == {"p", "ja", "t"}
        assert not await crm.rejected()


async def test_events_do_not_depend_on_the_session(database_dsn: str) -> None:
    tables = "CREATE TABLE kinds (day date, at timestamptz[], long interval, raw bytea, PRIMARY KEY (day))"
    section = """
        [[capture]]
        table = "kinds"
        object_type = "kind"
        key = "day"
        columns = ["day", "at", "long", "raw"]
    """
    insert = r"INSERT INTO kinds VALUES ('2026-03-04', '{2026-03-04 10:00Z}', '1 day 02:00', '\x00ff')"
    async with crm_of(database_dsn, tables) as crm:
        await crm.apply(section)
        (event,) = await crm.does(
            "SET DateStyle = 'German'; SET TimeZone = 'Asia/Tokyo'; SET IntervalStyle = 'sql_standard'",
            "SET bytea_output = 'escape'; SET search_path = nowhere",
            insert.replace("kinds", "public.kinds"),
        )
        assert event["object_id"] == "2026-03-04"
        assert event["data"] == {
            "day": "2026-03-04",
            "at": ["2026-03-04T10:00:00+00:00"],
            "long": "P1DT2H",
            "raw": "\\x00ff",
        }


async def test_plan_apply_and_drop(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:

        def actions(steps: list[Step]) -> list[tuple[str, str]]:
            return [(step.name, step.action) for step in steps]

        assert actions(await crm.store.plan(captures(SIMPLE))) == [("deal", "create")]
        assert not await crm.does("INSERT INTO crm.deals (id) VALUES (1)")
        assert actions(await crm.apply(SIMPLE)) == [("deal", "create")]
        assert actions(await crm.store.plan(captures(SIMPLE))) == [("deal", "keep")]
        changed = SIMPLE.replace('"price"', '"price", "status"')
        (step,) = await crm.store.plan(captures(changed))
        assert step.action == "change"
        assert step.diff == ('-    "price"', '+    "price",', '+    "status"')
        await crm.apply(changed)
        assert actions(await crm.store.plan(captures(changed))) == [("deal", "keep")]
        await crm.connection.execute("ALTER TABLE crm.deals DISABLE TRIGGER USER")
        (step,) = await crm.store.plan(captures(changed))
        assert step.action == "change"
        await crm.apply(changed)
        await crm.connection.execute("ALTER TABLE crm.deals RENAME TO offers")
        moved = changed.replace("crm.deals", "crm.offers")
        assert actions(await crm.apply(moved)) == [("deal", "change")]
        assert types(await crm.does("INSERT INTO crm.offers (id) VALUES (5)")) == ["deal.created"]
        assert actions(await crm.store.plan(())) == [("deal", "drop")]
        with pytest.raises(UsageError, match="no capture 'deals'"):
            await crm.store.drop(["deals"])
        assert actions(await crm.store.drop(["deal"])) == [("deal", "drop")]
        left = """SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'postrider%')
                       + (SELECT count(*) FROM pg_proc WHERE proname LIKE 'capture\\_%')
                       + (SELECT count(*) FROM postrider.capture)"""
        assert await crm.connection.fetchval(left) == 0
        assert not await crm.does("INSERT INTO crm.offers (id) VALUES (6)")


async def test_apply_does_all_or_nothing(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        both = SIMPLE + SIMPLE.replace('"deal"', '"client"').replace("crm.deals", "crm.clients").replace(
            '"title", "price"', '"name"'
        )
        other = await asyncpg.connect(database_dsn)
        try:
            transaction = other.transaction()
            await transaction.start()
            await other.execute("LOCK TABLE crm.clients IN ROW EXCLUSIVE MODE")
            with pytest.raises(DatabaseError, match="busy"):
                await crm.apply(both)
            await transaction.rollback()
        finally:
            await other.close()
        assert not await crm.does("INSERT INTO crm.deals (id) VALUES (1)")


MISTAKES = {
    'table = "crm.dealz"': "there is no table crm.dealz; did you mean crm.deals?",
    'table = "crm.deal_view"': "crm.deal_view is not a table",
    'columns = ["id", "titel"]': "crm.deals has no column titel; did you mean title?",
    'key = "title"': "crm.deals has no unique index on title",
    'columns.c = { table = "crm.clients", where = { nr = "client_id" }, column = "name" }': "no column nr",
    'columns.c = { table = "crm.clients", where = { id = "cient_id" }, column = "name" }': "client_id?",
    'columns.c = { table = "crm.client", where = { id = "client_id" }, column = "name" }': "crm.clients?",
    'derived = [{ type = "deal.won", column = "stage_id", becomes = "won" }]': "no value of stage_id (int",
    'derived = [{ type = "deal.won", column = "state" }]': "crm.deals has no column state",
    'derived = [{ type = "deal.won", column = "stage_id", increases = [1, "b"] }]': "'b' is no value of",
    'columns.c = { columns = ["id"], if_set = "closed" }': "if_set: crm.deals has no column closed; did you",
    'columns.c = { table = "crm.clients", where = { name = "id" }, column = "id" }': "operator does not",
    'workspace = "tenant"': "crm.deals has no column tenant",
}


@pytest.mark.parametrize("line", MISTAKES)
async def test_what_does_not_fit_the_tables_is_told_at_plan_time(database_dsn: str, line: str) -> None:
    section: dict[str, Any] = {"table": "crm.deals", "object_type": "deal", "columns": ["id"]}
    parsed, mistakes = parse_captures([{**section, **tomllib.loads(line)}])
    assert not mistakes
    async with crm_of(database_dsn, TABLES + "CREATE VIEW crm.deal_view AS SELECT * FROM crm.deals;") as crm:
        with pytest.raises(UsageError) as caught:
            await crm.store.plan(parsed)
        assert MISTAKES[line] in caught.value.message


async def test_rejected_rows_are_logged_once(database_dsn: str, tmp_path: Path) -> None:
    async with crm_of(database_dsn) as crm, staged(database_dsn, tmp_path) as stage:
        await crm.apply(SIMPLE)
        await crm.does("INSERT INTO crm.deals (id, title) VALUES (9, repeat('x', 2000000))")
        first, second = [await stage.daemon.services.janitor.tell_rejections() for _ in range(2)]
        assert (first <= 1, second) == (True, 0)
        assert await crm.connection.fetchval("SELECT bool_and(logged) FROM postrider.capture_rejected")

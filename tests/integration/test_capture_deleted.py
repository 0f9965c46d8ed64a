"""Related rows that the same transaction deletes: where a lookup asks for it, events still show them."""

import asyncpg

from tests.integration.test_capture import NOW, crm_of, types

TABLES = """
CREATE SCHEMA crm;
CREATE TYPE crm.size AS ENUM ('small', 'large');
CREATE TABLE crm.clients (
  country text, number bigint, name text, size crm.size, about json, PRIMARY KEY (country, number)
);
CREATE TABLE crm.deals (
  id bigint PRIMARY KEY, title text, country text, client integer,
  FOREIGN KEY (country, client) REFERENCES crm.clients ON DELETE {action} DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO crm.clients VALUES ('a,b', 7, 'Äcme', 'large', '{{"n": 1.0}}'), ('a', 8, NULL, NULL, NULL);
INSERT INTO crm.deals VALUES (1, 'one', 'a,b', 7), (2, 'two', 'a', 8), (3, 'three', NULL, NULL);
"""
SECTION = """
[[capture]]
table = "crm.deals"
object_type = "deal"
[capture.columns]
id = "id"
name = { table = "crm.clients", where = { country = "country", number = "client" }, column = "name", KEEP }
[capture.columns.client]
table = "crm.clients"
where = { number = "client", country = "country" }
columns = ["number", "name", "size", "about"]
KEEP
"""
KEPT = SECTION.replace("KEEP", "keep_deleted = true")
CLIENT = {"number": 7, "name": "Äcme", "size": "large", "about": {"n": 1.0}}


async def test_an_event_shows_the_related_row_that_its_transaction_deleted(database_dsn: str) -> None:
    async with crm_of(database_dsn, TABLES.format(action="CASCADE")) as crm:
        await crm.apply(KEPT)
        for statements in (
            ["DELETE FROM crm.clients"],
            ["DELETE FROM crm.clients", "DELETE FROM crm.deals"],
            ["DELETE FROM crm.clients", "INSERT INTO crm.clients VALUES ('a,b', 7, 'x')",
             "UPDATE crm.clients SET (name, size, about) = ('Äcme', 'large', '{\"n\": 1.0}')",
             "DELETE FROM crm.clients"],
        ):  # fmt: skip
            events = await crm.does("BEGIN", *statements, "SET CONSTRAINTS ALL IMMEDIATE")
            await crm.connection.execute("ROLLBACK")
            told = {event["object_id"]: event["data"] for event in events}
            assert told["1"] == {"id": 1, "name": "Äcme", "client": CLIENT}, statements
            assert told["2"]["client"] == {"number": 8, "name": None, "size": None, "about": None}
        (event,) = await crm.does("DELETE FROM crm.deals WHERE id = 3")
        assert event["data"] == {"id": 3, "name": None, "client": None}
        assert not await crm.rejected()


async def test_a_lookup_that_does_not_ask_shows_what_is_left(database_dsn: str) -> None:
    async with crm_of(database_dsn, TABLES.format(action="CASCADE")) as crm:
        await crm.apply(SECTION.replace(", KEEP", "").replace("KEEP", ""))
        events = await crm.does("DELETE FROM crm.clients")
        assert [event["data"]["client"] for event in events] == [None, None]
        assert not await crm.connection.fetchval("SELECT count(*) FROM postrider.capture_deleted")


async def test_a_reference_that_a_deletion_clears_is_an_update(database_dsn: str) -> None:
    async with crm_of(database_dsn, TABLES.format(action="SET NULL")) as crm:
        for section, previous in (
            (SECTION.replace(", KEEP", "").replace("KEEP", ""), None),
            (KEPT, {"name": "Äcme", "client": CLIENT}),
        ):
            await crm.apply(section)
            (event,) = await crm.does("BEGIN", "DELETE FROM crm.clients WHERE number = 7")
            await crm.connection.execute("ROLLBACK")
            assert (event["type"], event["data"]["client"]) == ("deal.updated", None)
            assert event["previous_attributes"] == previous


async def test_deleted_rows_are_no_other_transactions_and_are_forgotten(database_dsn: str) -> None:
    async with crm_of(database_dsn, TABLES.format(action="NO ACTION")) as crm:
        await crm.apply(KEPT)
        kept = "SELECT count(*) FROM postrider.capture_deleted"
        await crm.connection.execute("ALTER TABLE crm.deals DROP CONSTRAINT deals_country_client_fkey")
        await crm.connection.execute("DELETE FROM crm.clients")
        assert await crm.connection.fetchval(kept) == 2
        (event,) = await crm.does("DELETE FROM crm.deals WHERE id = 1")
        assert event["data"]["client"] is None
        other = await asyncpg.connect(database_dsn)
        try:
            async with other.transaction():
                await other.execute("INSERT INTO crm.clients VALUES ('c', 9)")
                await other.execute("DELETE FROM crm.clients")
                await crm.store.forget_rejections(NOW)
                assert await other.fetchval(kept) == 1
        finally:
            await other.close()
        await crm.store.forget_rejections(NOW)
        assert await crm.connection.fetchval(kept) == 0


async def test_the_crm_deletes_where_nothing_can_be_kept(database_dsn: str) -> None:
    async with crm_of(database_dsn, TABLES.format(action="CASCADE")) as crm:
        await crm.apply(KEPT)
        await crm.connection.execute("DROP TABLE postrider.capture_deleted")
        await crm.connection.execute("DELETE FROM crm.clients")
        assert not await crm.connection.fetchval("SELECT count(*) FROM crm.clients")
        assert len(await crm.rejected()) == 2


async def test_triggers_that_keep_rows_belong_to_the_capture(database_dsn: str) -> None:
    async with crm_of(database_dsn, TABLES.format(action="CASCADE")) as crm:
        assert [step.action for step in await crm.apply(KEPT)] == ["create"]
        assert [step.action for step in await crm.apply(KEPT)] == ["keep"]
        await crm.connection.execute("DROP TRIGGER postrider_capture_deal_kept ON crm.clients")
        assert [step.action for step in await crm.apply(KEPT)] == ["change"]
        await crm.apply(SECTION.replace(", KEEP", "").replace("KEEP", ""))
        left = "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'crm.clients'::regclass AND NOT tgisinternal"
        assert await crm.connection.fetchval(left) == 0


async def test_the_deletion_of_many_related_rows_takes_no_time_for_each_pair(database_dsn: str) -> None:
    async with crm_of(database_dsn, TABLES.format(action="CASCADE")) as crm:
        await crm.apply(KEPT)
        await crm.connection.execute(
            """INSERT INTO crm.clients SELECT 'c', n, 'client ' || n FROM generate_series(1, 3000) AS n;
               CREATE INDEX ON crm.deals (country, client);
               SET statement_timeout = '20s'"""
        )
        await crm.connection.execute(
            "INSERT INTO crm.deals SELECT 1000 + n, 'deal', 'c', n FROM generate_series(1, 3000) AS n"
        )
        events = await crm.does("DELETE FROM crm.clients WHERE country = 'c'")
        assert types(events) == ["deal.deleted"] * 3000
        assert all(event["data"]["name"] == f"client {event['data']['id'] - 1000}" for event in events)

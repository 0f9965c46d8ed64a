"""Related rows that the same transaction deletes: where a lookup asks for it, events still show them."""

import asyncpg
import pytest

from postrider.domain.errors import UsageError
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
                await crm.store.forget(NOW)
                assert await other.fetchval(kept) == 1
        finally:
            await other.close()
        await crm.store.forget(NOW)
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
        await crm.connection.execute("DROP TRIGGER postrider_archive_deal ON crm.clients")
        assert [step.action for step in await crm.apply(KEPT)] == ["change"]
        await crm.apply(KEPT)
        await crm.connection.execute("ALTER TABLE crm.clients ENABLE REPLICA TRIGGER postrider_archive_deal")
        assert [step.action for step in await crm.apply(KEPT)] == ["change"], "it fired for no statement"
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


PARTED = """
CREATE SCHEMA crm;
CREATE TABLE crm.clients (id bigint, name text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE crm.clients_1 PARTITION OF crm.clients FOR VALUES FROM (0) TO (100);
CREATE TABLE crm.deals (id bigint PRIMARY KEY, client_id bigint REFERENCES crm.clients ON DELETE CASCADE);
INSERT INTO crm.clients VALUES (7, 'Acme'), (8, 'Other');
INSERT INTO crm.deals VALUES (1, 7), (2, 8);
"""
NAMED = """
[[capture]]
table = "crm.deals"
object_type = "deal"
[capture.columns]
id = "id"
name = { table = "crm.clients", where = { id = "client_id" }, column = "name", keep_deleted = true }
"""


async def test_rows_deleted_straight_from_a_partition_are_kept(database_dsn: str) -> None:
    async with crm_of(database_dsn, PARTED) as crm:
        await crm.apply(NAMED)
        events = await crm.does(
            "DELETE FROM crm.clients_1 WHERE id = 7", "DELETE FROM crm.clients WHERE id = 8"
        )
        assert [event["data"]["name"] for event in events] == ["Acme", "Other"]
        await crm.connection.execute(
            "CREATE TABLE crm.clients_2 PARTITION OF crm.clients FOR VALUES FROM (100) TO (200)"
        )
        assert [step.action for step in await crm.apply(NAMED)] == ["change"]
        assert [step.action for step in await crm.apply(NAMED)] == ["keep"]
        events = await crm.does(
            "INSERT INTO crm.clients VALUES (100, 'New')",
            "INSERT INTO crm.deals VALUES (3, 100)",
            "DELETE FROM crm.clients_2",
        )
        assert [event["data"]["name"] for event in events] == ["New", "New"]
        await crm.store.drop(None)
        left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'postrider%'"
        assert await crm.connection.fetchval(left) == 0


async def test_a_foreign_partition_of_a_table_whose_rows_are_kept_is_refused(database_dsn: str) -> None:
    """PostgreSQL would refuse what the CRM deletes."""
    tables = PARTED.replace(", PRIMARY KEY (id)", "").replace("REFERENCES crm.clients ON DELETE CASCADE", "")
    async with crm_of(database_dsn, tables) as crm:
        await crm.connection.execute(
            """CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER far FOREIGN DATA WRAPPER elsewhere;
               CREATE FOREIGN TABLE crm.old PARTITION OF crm.clients DEFAULT SERVER far"""
        )
        with pytest.raises(UsageError, match=r"crm\.old, a partition of crm\.clients, is a foreign table"):
            await crm.apply(NAMED)


@pytest.mark.parametrize("action", ["CASCADE", "NO ACTION"])
async def test_a_table_that_refers_to_itself_shows_the_row_that_is_deleted_with_it(
    database_dsn: str, action: str
) -> None:
    tables = f"""
        CREATE SCHEMA crm;
        CREATE TABLE crm.deals (
          id bigint PRIMARY KEY, name text, client_id bigint REFERENCES crm.deals ON DELETE {action}
        );
        INSERT INTO crm.deals VALUES (1, 'one', NULL), (2, 'two', 1), (3, 'three', 2);"""
    async with crm_of(database_dsn, tables) as crm:
        await crm.apply(NAMED.replace("crm.clients", "crm.deals"))
        events = await crm.does(f"DELETE FROM crm.deals {'WHERE id = 1' if action == 'CASCADE' else ''}")
        assert {event["object_id"]: event["data"]["name"] for event in events} == {
            "1": None,
            "2": "one",
            "3": "two",
        }


TREE = """
CREATE SCHEMA crm;
CREATE TABLE crm.clients (id bigint PRIMARY KEY, name text, parent bigint) {partitions};
CREATE TABLE crm.deals (id bigint PRIMARY KEY, client_id bigint REFERENCES crm.clients ON DELETE CASCADE);
ALTER TABLE crm.clients ADD FOREIGN KEY (parent) REFERENCES crm.clients ON DELETE CASCADE;
"""
PARTITION = "CREATE TABLE crm.clients_1 PARTITION OF crm.clients DEFAULT;"


@pytest.mark.parametrize(
    "tables",
    [
        TREE.format(partitions=""),
        TREE.format(partitions="PARTITION BY RANGE (id)") + PARTITION,
    ],
)
async def test_deals_of_a_tree_of_clients_show_the_one_of_each(database_dsn: str, tables: str) -> None:
    """The key that was made first acts first, so the deals of a client go before those under it do."""
    async with crm_of(database_dsn, tables) as crm:
        assert [step.action for step in await crm.apply(NAMED)] == ["create"]
        assert [step.action for step in await crm.apply(NAMED)] == ["keep"]
        events = await crm.does(
            "INSERT INTO crm.clients VALUES (1, 'one', NULL), (2, 'two', 1), (3, 'three', 2)",
            "INSERT INTO crm.deals VALUES (1, 1), (2, 2), (3, 3)",
            "DELETE FROM crm.clients WHERE id = 1",
        )
        gone = [event for event in events if event["type"] == "deal.deleted"]
        assert {event["object_id"]: event["data"]["name"] for event in gone} == {
            "1": "one",
            "2": "two",
            "3": "three",
        }


async def test_a_table_may_be_written_in_two_ways(database_dsn: str) -> None:
    async with crm_of(database_dsn, PARTED) as crm:
        await crm.apply(
            NAMED + 'same = { table = "CRM.Clients", where = { id = "client_id" }, '
            'column = "name", keep_deleted = true }\n'
        )
        events = await crm.does("DELETE FROM crm.clients WHERE id = 7")
        assert [event["data"] for event in events] == [{"id": 1, "name": "Acme", "same": "Acme"}]


@pytest.mark.parametrize(
    ("theirs", "ours", "value", "as_written"),
    [
        ("numeric(10, 2)", "bigint", "7", "7"),
        ("bigint", "numeric", "7", "7.00"),
        ("numeric", "numeric", "7.0", "7"),
        ("char(10)", "text", "'x'", "'x'"),
        ("text", "char(10)", "'x'", "'x'"),
        ("varchar(10)", "text", "'x '", "'x '"),
    ],
)
async def test_a_deleted_row_is_found_by_what_is_equal_though_written_otherwise(
    database_dsn: str, theirs: str, ours: str, value: str, as_written: str
) -> None:
    tables = f"""
        CREATE SCHEMA crm;
        CREATE TABLE crm.clients (id {theirs} PRIMARY KEY, name text);
        CREATE TABLE crm.deals (id bigint PRIMARY KEY, client_id {ours});
        INSERT INTO crm.clients VALUES ({value}, 'Acme');
        INSERT INTO crm.deals VALUES (1, {as_written});"""
    async with crm_of(database_dsn, tables) as crm:
        await crm.apply(NAMED)
        (event,) = await crm.does("BEGIN", "DELETE FROM crm.clients", "DELETE FROM crm.deals", "COMMIT")
        assert event["data"]["name"] == "Acme"


async def test_a_daemon_can_forget_kept_rows_but_not_read_them(database_dsn: str) -> None:
    async with crm_of(database_dsn, PARTED) as crm:
        await crm.connection.execute("SET ROLE postrider_daemon")
        await crm.connection.execute("DELETE FROM postrider.capture_deleted WHERE transaction < '5'")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await crm.connection.fetch("SELECT image FROM postrider.capture_deleted")

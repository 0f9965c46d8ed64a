"""Statements inside of statements: what is told last of an object is its last state."""

import re
from typing import Any

import pytest

from tests.integration.test_capture import SIMPLE, Crm, crm_of
from tests.integration.test_capture_set_aside import locked, recovered

AGAIN = """
CREATE FUNCTION crm.again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.title NOT LIKE '%!!' THEN
    UPDATE crm.deals SET title = title || '!' WHERE id = NEW.id;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER again AFTER INSERT OR UPDATE ON crm.deals FOR EACH ROW EXECUTE FUNCTION crm.again();
"""


def titles(events: list[dict[str, Any]], object_id: str) -> list[str]:
    return [event["data"]["title"] for event in events if event["object_id"] == object_id]


async def in_order(crm: Crm, *statements: str) -> list[dict[str, Any]]:
    """The events, whose ids, times and places in the queue are in one order."""
    events = await crm.does(*statements)
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    assert [event["occurred_at"] for event in events] == sorted(event["occurred_at"] for event in events)
    assert not await crm.rejected()
    return events


async def test_the_last_event_tells_the_last_state(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.connection.execute(AGAIN)
        await crm.apply(SIMPLE)
        events = await in_order(crm, "INSERT INTO crm.deals (id, title) VALUES (1, 'a'), (2, 'b')")
        assert titles(events, "1") == ["a", "a!", "a!!"]
        assert titles(events, "2") == ["b", "b!", "b!!"]
        assert [event["type"] for event in events if event["object_id"] == "1"] == [
            "deal.created",
            "deal.updated",
            "deal.updated",
        ]
        times = [event["occurred_at"] for event in events if event["object_id"] == "1"]
        assert len(set(times)) == 3, "each state has a time of its own"
        events = await in_order(
            crm,
            "BEGIN",
            "UPDATE crm.deals SET title = 'x' WHERE id = 1",
            "UPDATE crm.deals SET title = 'y' WHERE id = 1",
            "DELETE FROM crm.deals WHERE id = 1",
            "COMMIT",
        )
        assert titles(events, "1") == ["x", "x!", "x!!", "y", "y!", "y!!", "y!!"]


async def test_many_rows_of_a_statement_stay_in_order(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.connection.execute(AGAIN.replace("FOR EACH ROW", "FOR EACH ROW WHEN (NEW.id % 100 = 0)"))
        await crm.apply(SIMPLE)
        events = await in_order(
            crm, "INSERT INTO crm.deals (id, title) SELECT n, 'a' FROM generate_series(1, 3000) AS n"
        )
        assert len(events) == 3000 + 2 * 30
        assert [event["object_id"] for event in events[:3000]] == [str(n) for n in range(1, 3001)]
        assert titles(events, "3000") == ["a", "a!", "a!!"]


async def test_a_statement_trigger_of_the_crm_may_write_too(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.connection.execute(
            """CREATE FUNCTION crm.also() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN
                   IF pg_trigger_depth() = 1 THEN
                     UPDATE crm.deals SET title = title || TG_ARGV[0];
                   END IF;
                   RETURN NULL;
                 END $$;
               CREATE TRIGGER ant AFTER UPDATE ON crm.deals
                 FOR EACH STATEMENT EXECUTE FUNCTION crm.also('<');
               CREATE TRIGGER zebra AFTER UPDATE ON crm.deals
                 FOR EACH STATEMENT EXECUTE FUNCTION crm.also('>')"""
        )
        await crm.apply(SIMPLE)
        await crm.does("INSERT INTO crm.deals (id, title) VALUES (1, 'a')")
        events = await in_order(crm, "UPDATE crm.deals SET title = title || '-'")
        assert titles(events, "1") == ["a-", "a-<", "a-<>"]


async def test_a_statement_that_is_rolled_back_leaves_no_trace(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.connection.execute(AGAIN)
        await crm.apply(SIMPLE)
        broken = """DO $$ BEGIN
            UPDATE crm.deals SET id = 1;
          EXCEPTION WHEN unique_violation THEN NULL; END $$"""
        events = await in_order(
            crm,
            "INSERT INTO crm.deals (id, title) VALUES (1, 'a!!'), (2, 'b!!')",
            "BEGIN",
            "UPDATE crm.deals SET title = 'x!!' WHERE id = 1",
            broken,
            "UPDATE crm.deals SET title = 'y' WHERE id = 1",
            "COMMIT",
        )
        assert titles(events, "1") == ["a!!", "x!!", "y", "y!", "y!!"]


async def test_cascades_upserts_and_merges_leave_no_trace(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.connection.execute(
            "ALTER TABLE crm.deals ADD parent bigint REFERENCES crm.deals ON DELETE CASCADE"
        )
        await crm.apply(SIMPLE)
        merge = """MERGE INTO crm.deals AS d USING (VALUES (1), (9)) AS v (id) ON d.id = v.id
                   WHEN MATCHED THEN UPDATE SET title = 'merged'
                   WHEN NOT MATCHED THEN INSERT (id) VALUES (v.id)"""
        await crm.connection.execute("BEGIN")
        for statement in (
            "INSERT INTO crm.deals (id, title, parent) VALUES (1, 'a', NULL), (2, 'b', 1), (3, 'c', 2)",
            "INSERT INTO crm.deals (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET title = 'd'",
            merge if crm.connection.get_server_version().major >= 15 else "SELECT",
            "DELETE FROM crm.deals WHERE id = 1",
        ):
            await crm.connection.execute(statement)
            assert not await crm.connection.fetchval("SELECT current_setting('postrider.begun_deal')")
        await crm.connection.execute("COMMIT")
        events = await crm.events()
        assert [event["type"] for event in events if event["object_id"] in "123"].count("deal.deleted") == 3
        assert not await crm.rejected()


async def test_rows_that_are_set_aside_become_events_in_the_order_of_their_commands(
    database_dsn: str,
) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.connection.execute(AGAIN)
        await crm.apply(SIMPLE)
        async with locked(database_dsn, "postrider.outbox"):
            await crm.connection.execute("INSERT INTO crm.deals (id, title) VALUES (1, 'a')")
        assert await recovered(crm) == (3, 3, 0)
        assert titles(await crm.events(), "1") == ["a", "a!", "a!!"]


@pytest.mark.parametrize("forged", ["99999999999999999", "0", "x", "-"])
async def test_what_a_session_sets_itself_moves_no_event_out_of_its_transaction(
    database_dsn: str, forged: str
) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.apply(SIMPLE)
        await crm.connection.execute(
            f"""CREATE FUNCTION crm.forge() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                  PERFORM set_config('postrider.begun_deal', 'INSERT:{forged} ', true);
                  RETURN NULL;
                END $$;
                CREATE TRIGGER forge AFTER INSERT ON crm.deals
                  FOR EACH STATEMENT EXECUTE FUNCTION crm.forge()"""
        )
        (event,) = await crm.does(
            "INSERT INTO crm.deals (id, title) VALUES (1, 'a')",
            "INSERT INTO crm.deals (id, title) VALUES (2, repeat('x', 2000000))",
        )
        row = await crm.connection.fetchrow(
            """SELECT abs(extract(epoch FROM now() - occurred_at)) AS age,
                      tableoid::regclass::text LIKE '%default' AS misplaced FROM postrider.outbox
               UNION ALL SELECT abs(extract(epoch FROM now() - at)), false FROM postrider.capture_rejected
               ORDER BY age DESC LIMIT 1"""
        )
        assert row is not None
        assert (row["age"] < 60, row["misplaced"]) == (True, False)
        assert re.fullmatch(
            r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", str(event["id"])
        )


async def test_what_notes_the_beginning_of_a_statement_calls_no_namesake(database_dsn: str) -> None:
    """It runs with the rights and the search_path of the CRM's session."""
    async with crm_of(database_dsn) as crm:
        await crm.connection.execute(AGAIN)
        await crm.apply(SIMPLE)
        await crm.connection.execute(
            """CREATE FUNCTION crm.set_config(text, text, boolean) RETURNS text
                 LANGUAGE sql AS 'SELECT 1/0 || $1';
               CREATE FUNCTION crm.current_setting(text, boolean) RETURNS text
                 LANGUAGE sql AS 'SELECT 1/0 || $1';
               CREATE FUNCTION crm.concat(VARIADIC text[]) RETURNS text
                 LANGUAGE sql AS 'SELECT 1/0 || $1[1]';
               SET search_path = crm, pg_catalog"""
        )
        events = await in_order(crm, "INSERT INTO crm.deals (id, title) VALUES (1, 'a')")
        assert titles(events, "1") == ["a", "a!", "a!!"]
        confined = await crm.connection.fetch(
            "SELECT prosecdef, proacl::text FROM pg_proc WHERE proname = 'begun_deal'"
        )
        assert [tuple(row) for row in confined] == [(False, "{postrider_capture=X/postrider_capture}")], (
            "nobody else can call it"
        )
        await crm.connection.execute("ALTER FUNCTION postrider.begun_deal() SECURITY DEFINER")
        assert [step.action for step in await crm.apply(SIMPLE)] == ["change"]

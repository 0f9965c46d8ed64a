"""Who owns a captured table gains no right by it: neither the CRM's statements nor Postrider's commands run
what that owner defines with more rights than postrider_capture has."""

import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
import pytest

from postrider.domain.errors import UsageError
from postrider.store.database import Connection, Database, DatabaseError
from tests.integration.test_capture import captures
from tests.support.captures import Captures
from tests.support.cli import Cli

NOW = datetime(2026, 3, 15, tzinfo=UTC)
OWNER = f"postrider_test_owner_{os.getpid()}"
SECTION = """
[[capture]]
table = "crm.deals"
object_type = "deal"
[capture.columns]
id = "id"
title = "title"
mood = "mood"
client = { table = "crm.clients", where = { id = "client_id" }, columns = ["id", "name"] }
"""
# What an attacker tries when code of his is run: to become superuser, as himself or as who he could be again;
# to leave a trap for the end of the transaction; and to free whatever confined him for the next time.
EVIL = f"""
CREATE SCHEMA crm AUTHORIZATION {OWNER};
SET SESSION AUTHORIZATION {OWNER};
CREATE SEQUENCE crm.runs;
GRANT USAGE ON SCHEMA crm TO PUBLIC;
GRANT ALL ON SEQUENCE crm.runs TO PUBLIC;
CREATE FUNCTION crm.seize() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM nextval('crm.runs');
  BEGIN EXECUTE 'ALTER ROLE {OWNER} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN
    PERFORM set_config('role', 'none', false);
    EXECUTE 'ALTER ROLE {OWNER} SUPERUSER';
  EXCEPTION WHEN OTHERS THEN NULL; END;
END $$;
CREATE FUNCTION crm.spring() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN PERFORM crm.seize(); RETURN NULL; END';
CREATE TABLE crm.traps (n integer);
GRANT ALL ON crm.traps TO PUBLIC;
CREATE CONSTRAINT TRIGGER spring AFTER INSERT ON crm.traps DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION crm.spring();
CREATE FUNCTION crm.evil() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  f regprocedure;
BEGIN
  PERFORM crm.seize();
  BEGIN INSERT INTO crm.traps VALUES (1); EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN PERFORM set_config('search_path', 'crm, pg_catalog', false); EXCEPTION WHEN OTHERS THEN NULL; END;
  FOR f IN SELECT p.oid FROM pg_proc AS p WHERE p.prosecdef AND pg_has_role(p.proowner, 'USAGE') LOOP
    BEGIN EXECUTE format('ALTER FUNCTION %s SECURITY INVOKER', f); EXCEPTION WHEN OTHERS THEN NULL; END;
  END LOOP;
  RETURN true;
END $$;
-- The planner runs it.
CREATE FUNCTION crm.folded() RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN crm.evil(); END';
CREATE FUNCTION crm.evil(text) RETURNS text LANGUAGE sql AS 'SELECT CASE WHEN crm.evil() THEN $1 END';
CREATE TABLE crm.clients (id bigint PRIMARY KEY, name text);
INSERT INTO crm.clients VALUES (7, 'Acme');
"""
DEALS = "CREATE TABLE crm.deals (id bigint PRIMARY KEY, title text, client_id bigint, mood %s);"
TYPES = {
    "plain": "CREATE DOMAIN crm.mood AS text;",
    "enum with a cast to json": """
        CREATE TYPE crm.mood AS ENUM ('good', 'bad');
        CREATE FUNCTION crm.as_json(crm.mood) RETURNS json LANGUAGE sql AS $$
          SELECT CASE WHEN crm.evil() THEN '"seen"'::json END $$;
        CREATE CAST (crm.mood AS json) WITH FUNCTION crm.as_json(crm.mood);""",
    "enum with a cast to text": """
        CREATE TYPE crm.mood AS ENUM ('good', 'bad');
        CREATE FUNCTION crm.as_text(crm.mood) RETURNS text LANGUAGE sql IMMUTABLE AS $$
          SELECT CASE WHEN crm.evil() THEN 'seen' END $$;
        CREATE CAST (crm.mood AS text) WITH FUNCTION crm.as_text(crm.mood) AS IMPLICIT;""",
    "domain with a check": "CREATE DOMAIN crm.mood AS text CHECK (crm.evil());",
    "composite of such a domain": """
        CREATE DOMAIN crm.inner_mood AS text CHECK (crm.evil());
        CREATE TYPE crm.mood AS (one crm.inner_mood);""",
}
SWAPS = {
    "nothing": "SELECT",
    "view": """DROP TABLE crm.clients;
        CREATE VIEW crm.clients AS SELECT 7::bigint AS id, crm.evil('x') AS name;
        GRANT ALL ON crm.clients TO PUBLIC;""",
    "row security": """ALTER TABLE crm.clients ENABLE ROW LEVEL SECURITY;
        CREATE POLICY one ON crm.clients USING (crm.folded());""",
    "an operator": """
        CREATE FUNCTION crm.eq(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT crm.evil()';
        CREATE OPERATOR crm.= (FUNCTION = crm.eq, LEFTARG = bigint, RIGHTARG = bigint);""",
}


def as_owner(dsn: str, name: str = OWNER) -> str:
    parts = urlsplit(dsn)
    host = f"{name}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=host, query=urlencode(parse_qsl(parts.query))))


class Crm:
    """A superuser's connection, the CRM owner's, and the captures as the superuser handles them."""

    def __init__(self, root: Connection, owner: Connection, store: Captures) -> None:
        self.root = root
        self.owner = owner
        self.store = store

    async def owner_is_superuser(self) -> bool:
        found: bool = await self.root.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = $1", OWNER)
        return found

    async def runs(self) -> int:
        """How often the owner's code ran, also where that was rolled back."""
        count: int = await self.root.fetchval(
            "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM crm.runs"
        )
        return count


@asynccontextmanager
async def crm_of(dsn: str, mood: str = TYPES["plain"]) -> AsyncIterator[Crm]:
    root = await asyncpg.connect(dsn)
    database = Database(dsn, pool_size=2)
    await database.open()
    await root.execute(f"CREATE ROLE {OWNER} LOGIN")
    try:
        await root.execute(EVIL + mood + DEALS % "crm.mood" + "RESET SESSION AUTHORIZATION")
        owner = await asyncpg.connect(as_owner(dsn))
        try:
            yield Crm(root, owner, Captures(database))
        finally:
            await owner.close()
    finally:
        await database.close()
        await root.execute(f"DROP OWNED BY {OWNER} CASCADE; DROP ROLE {OWNER}")
        await root.close()


@asynccontextmanager
async def neighbour(crm: Crm, *grants: str) -> AsyncIterator[str]:
    """The name of another login; `{}` in `grants` is it."""
    name = f"{OWNER}_neighbour"
    await crm.root.execute(f"CREATE ROLE {name} LOGIN")
    try:
        await crm.root.execute(";".join(grants).format(*[name] * len(grants)))
        yield name
    finally:
        await crm.root.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


async def everything_is_done(crm: Crm, swap: str, mood: str) -> None:
    """All that runs on an owner's table: plan and apply, statements, recovery, and plan and apply again."""
    await crm.store.plan(captures(SECTION))
    await crm.store.apply(captures(SECTION), NOW)
    await crm.owner.execute(swap)
    await crm.owner.execute("INSERT INTO crm.deals (id, title, client_id) VALUES (1, 'a', 7), (2, 'b', 7)")
    await crm.owner.execute(f"UPDATE crm.deals SET mood = '{mood}'")
    await crm.owner.execute("UPDATE crm.deals SET title = repeat('x', 2000000) WHERE id = 1")
    for _ in range(2):
        await crm.root.execute("UPDATE crm.deals SET title = title || '!'")
    shorter = SECTION.replace('title = "title"\n', "")
    for section in (SECTION, shorter, shorter, SECTION.replace('mood = "mood"\n', "")):
        await crm.store.recover(limit=100, after=0)
        with suppress(UsageError, DatabaseError):
            await crm.store.plan(captures(section))
        with suppress(UsageError, DatabaseError):
            await crm.store.apply(captures(section), NOW)


@pytest.mark.parametrize("mood", TYPES)
@pytest.mark.parametrize("swap", SWAPS)
async def test_a_table_owner_gains_no_right_by_a_capture(database_dsn: str, mood: str, swap: str) -> None:
    async with crm_of(database_dsn, TYPES[mood]) as crm:
        await everything_is_done(crm, SWAPS[swap], "(good)" if mood.startswith("composite") else "good")
        assert not await crm.owner_is_superuser()
        if mood == "plain" and swap == "row security":
            assert await crm.runs() == 0, "a policy runs nothing"
        elif mood != "plain" and swap != "row security":
            assert await crm.runs() > 0, "the attack was not tried"


IN_A_LOOKED_UP_TABLE = {
    "a cast": """CREATE TYPE crm.kind AS ENUM ('good');
        CREATE FUNCTION crm.kind_as_json(crm.kind) RETURNS json LANGUAGE sql AS $$
          SELECT CASE WHEN crm.evil() THEN '"seen"'::json END $$;
        CREATE CAST (crm.kind AS json) WITH FUNCTION crm.kind_as_json(crm.kind);
        ALTER TABLE crm.clients DROP COLUMN name;
        ALTER TABLE crm.clients ADD COLUMN name crm.kind DEFAULT 'good';""",
    "a view that everybody may read": """CREATE FUNCTION crm.shown() RETURNS text LANGUAGE sql AS
          $$ SELECT CASE WHEN crm.evil() THEN 'seen' END $$;""",
    "an error that claims success": """CREATE FUNCTION crm.shown() RETURNS text LANGUAGE plpgsql AS
          $$ BEGIN PERFORM crm.evil(); RAISE SQLSTATE 'PR001'; END $$;""",
}
SWAPPED = """DROP TABLE crm.clients;
    CREATE VIEW crm.clients AS SELECT 7::bigint AS id, crm.shown() AS name;
    GRANT SELECT ON crm.clients TO PUBLIC;"""


@pytest.mark.parametrize("way", IN_A_LOOKED_UP_TABLE)
@pytest.mark.parametrize("title", ["short", "too long"])
async def test_nothing_stays_of_what_an_owners_code_does_in_a_superusers_statement(
    database_dsn: str, way: str, title: str
) -> None:
    """Set by set, and where a row too large makes it go row by row."""
    async with crm_of(database_dsn) as crm:
        await crm.owner.execute(IN_A_LOOKED_UP_TABLE[way])
        await crm.store.apply(captures(SECTION), NOW)
        if way != "a cast":
            await crm.owner.execute(SWAPPED)
        functions = """SELECT proname, prosecdef, proowner, proconfig, proacl, prosrc FROM pg_proc
            WHERE pronamespace = 'postrider'::regnamespace ORDER BY oid"""
        before = await crm.root.fetch(functions)
        path = await crm.root.fetchval("SHOW search_path")
        for number in (1, 2):
            length = 2_000_000 if title == "too long" else 5
            async with crm.root.transaction():
                await crm.root.execute(
                    f"INSERT INTO crm.deals (id, title, client_id) VALUES ({number}, 'a', 7), "
                    f"({number + 10}, repeat('x', {length}), 7)"
                )
                assert await crm.root.fetchval("SHOW search_path") == path
            assert await crm.root.fetchval("SHOW search_path") == path
        assert await crm.runs() > 0, "the attack was not tried"
        assert not await crm.owner_is_superuser()
        assert await crm.root.fetchval("SELECT count(*) FROM crm.traps") == 0
        assert await crm.root.fetch(functions) == before
        names = await crm.root.fetch("SELECT data->'client'->>'name' AS name FROM postrider.outbox")
        rejections = await crm.store.rejections()
        if way == "an error that claims success":
            assert (len(names), len(rejections)) == (0, 4)
        else:
            assert {row["name"] for row in names} == {"seen"}
            assert len(names) + len(rejections) == 4


async def test_a_looked_up_relation_has_to_be_a_table(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.owner.execute("ALTER TABLE crm.clients RENAME TO people")
        for kind in ("VIEW", "MATERIALIZED VIEW"):
            await crm.owner.execute(f"CREATE {kind} crm.clients AS SELECT * FROM crm.people")
            with pytest.raises(UsageError, match=r"crm\.clients is not a table, so it can't be looked up"):
                await crm.store.apply(captures(SECTION), NOW)
            await crm.owner.execute(f"DROP {kind} crm.clients")


async def test_a_view_that_is_not_granted_in_the_place_of_a_looked_up_table_is_not_read(
    database_dsn: str,
) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.store.apply(captures(SECTION), NOW)
        await crm.owner.execute(
            """DROP TABLE crm.clients;
               CREATE VIEW crm.clients AS SELECT 7::bigint AS id, crm.evil('x') AS name;
               INSERT INTO crm.deals (id, client_id) VALUES (1, 7)"""
        )
        assert await crm.runs() == 0
        (row,) = await crm.store.rejections()
        assert "permission denied" in row.reason


async def test_a_capture_that_a_superuser_owns_is_told_and_mended(database_dsn: str) -> None:
    async with crm_of(database_dsn, TYPES["enum with a cast to json"]) as crm:
        await crm.store.apply(captures(SECTION), NOW)
        await crm.root.execute("ALTER FUNCTION postrider.capture_deal() OWNER TO postgres")
        (step,) = await crm.store.plan(captures(SECTION))
        assert step.action == "change"
        assert "run with the rights of postgres" in step.diff[0]
        await crm.store.apply(captures(SECTION), NOW)
        (step,) = await crm.store.plan(captures(SECTION))
        assert step.action == "keep"
        await crm.root.execute("ALTER FUNCTION postrider.capture_deal() SECURITY INVOKER")
        (step,) = await crm.store.plan(captures(SECTION))
        assert step.action == "change"


async def test_a_right_that_is_gone_is_told_and_mended(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.store.apply(captures(SECTION), NOW)
        await crm.owner.execute("DROP TABLE crm.clients; CREATE TABLE crm.clients (id bigint, name text)")
        (step,) = await crm.store.plan(captures(SECTION))
        assert step.diff == (
            'postrider_capture lacks SELECT ("id") ON crm.clients',
            'postrider_capture lacks SELECT ("name") ON crm.clients',
        )
        await crm.store.apply(captures(SECTION), NOW)
        await crm.owner.execute("INSERT INTO crm.deals (id, client_id) VALUES (1, 7)")
        assert await crm.store.rejections() == []


@pytest.mark.parametrize(
    ("flaw", "mend", "told"),
    [
        (
            "ALTER ROLE postrider_capture SUPERUSER",
            "ALTER ROLE postrider_capture NOSUPERUSER",
            "is a superuser",
        ),
        ("ALTER ROLE postrider_capture LOGIN", "ALTER ROLE postrider_capture NOLOGIN", "can log in"),
        (
            "ALTER ROLE postrider_capture BYPASSRLS",
            "ALTER ROLE postrider_capture NOBYPASSRLS",
            "row security",
        ),
        (
            "GRANT pg_read_all_data TO postrider_capture",
            "REVOKE pg_read_all_data FROM postrider_capture",
            "is a member of pg_read_all_data",
        ),
    ],
)
async def test_a_privileged_role_may_not_own_captures(
    database_dsn: str, flaw: str, mend: str, told: str
) -> None:
    # Roles are the whole server's: other tests must not see this one.
    async with crm_of(database_dsn) as crm, crm.root.transaction():
        await crm.root.execute(flaw)
        assert told in await crm.root.fetchval("SELECT postrider.role_flaw('postrider_capture')")
        await crm.root.execute(mend)
        assert await crm.root.fetchval("SELECT postrider.role_flaw('postrider_capture')") is None


async def test_the_tables_owner_applies_a_capture_with_the_grants_that_it_is_told(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.root.execute(f"GRANT postrider_daemon TO {OWNER}")
        database = Database(as_owner(database_dsn), pool_size=1)
        await database.open()
        try:
            store = Captures(database)
            with pytest.raises(DatabaseError, match="lacks rights that captures take") as caught:
                await store.apply(captures(SECTION), NOW)
            assert (
                f"Let a superuser run: GRANT postrider_capture TO {OWNER}; "
                f"GRANT CREATE ON SCHEMA postrider TO {OWNER} WITH GRANT OPTION;" in caught.value.hint
            )
            await crm.root.execute(
                f"GRANT postrider_capture TO {OWNER}; "
                f"GRANT CREATE ON SCHEMA postrider TO {OWNER} WITH GRANT OPTION"
            )
            await store.apply(captures(SECTION), NOW)
            await store.apply(captures(SECTION.replace('mood = "mood"\n', "")), NOW)
            await crm.owner.execute("INSERT INTO crm.deals (id, client_id) VALUES (1, 7)")
            assert await crm.root.fetchval("SELECT data->'client'->>'name' FROM postrider.outbox") == "Acme"
            (step,) = await store.plan(captures(SECTION.replace('mood = "mood"\n', "")))
            assert step.action == "keep"
            await store.drop(None)
            assert not await crm.root.fetchval(
                "SELECT has_schema_privilege('postrider_capture', 'postrider', 'CREATE')"
            )
        finally:
            await database.close()


async def test_apply_says_what_the_tables_owner_has_to_grant_to_somebody_else(database_dsn: str) -> None:
    """A login that owns neither the tables nor the schema postrider."""
    async with crm_of(database_dsn) as crm:
        await crm.root.execute("REVOKE USAGE ON SCHEMA crm FROM PUBLIC")
        grants = (
            "GRANT USAGE ON SCHEMA crm TO {}",
            "GRANT CREATE ON SCHEMA postrider TO {} WITH GRANT OPTION",
            "GRANT postrider_daemon, postrider_capture TO {}",
        )
        async with neighbour(crm, *grants) as name:
            database = Database(as_owner(database_dsn, name), pool_size=1)
            await database.open()
            try:
                store = Captures(database)
                kept = SECTION.replace('"name"] }', '"name"], keep_deleted = true }')
                section = captures(kept.replace('mood = "mood"\n', ""))
                with pytest.raises(DatabaseError) as caught:
                    await store.apply(section, NOW)
                told = caught.value.hint.partition("tables run: ")[2].partition(";  ")[0].split("; ")
                assert told == [
                    f"GRANT TRIGGER ON crm.clients TO {name}",
                    f"GRANT TRIGGER ON crm.deals TO {name}",
                    'GRANT USAGE ON SCHEMA "crm" TO postrider_capture',
                    'GRANT SELECT ("id") ON crm.clients TO postrider_capture',
                    'GRANT SELECT ("name") ON crm.clients TO postrider_capture',
                ]
                for statement in told:
                    await crm.owner.execute(statement)
                await store.apply(section, NOW)
                await crm.owner.execute("INSERT INTO crm.deals (id, client_id) VALUES (1, 7)")
                assert (
                    await crm.root.fetchval("SELECT data->'client'->>'name' FROM postrider.outbox") == "Acme"
                )
            finally:
                await database.close()


async def test_the_documented_login_plans_before_anything_is_applied(
    database_dsn: str, config_file: Path
) -> None:
    """It may do what the daemon does, and look at the CRM's schema."""
    async with crm_of(database_dsn, TYPES["enum with a cast to json"]) as crm:
        await crm.root.execute("REVOKE USAGE ON SCHEMA crm FROM PUBLIC")
        async with neighbour(crm, "GRANT postrider_daemon TO {}") as name:
            dsn = as_owner(database_dsn, name)
            config_file.write_text(config_file.read_text().replace(database_dsn, dsn) + SECTION)
            cli = Cli(config_file)

            def told() -> tuple[str, str]:
                """By plan and by check."""
                (finding,) = [
                    each
                    for each in json.loads(cli("check", "--no-endpoints", "--json", exit_code=1))
                    if each["what"] == "capture" and each["level"] == "fail"
                ]
                plan = cli.command("capture", "plan")
                done = subprocess.run(plan, capture_output=True, text=True, check=False)
                assert done.returncode in (1, 2)
                return finding["hint"], done.stderr

            for grantee in (name, "postrider_capture"):
                needed = f"GRANT USAGE ON SCHEMA crm TO {grantee}"
                assert all(needed in each.replace('"', "") for each in told())
                await crm.owner.execute(needed)
            assert cli("capture", "plan").startswith("+ create deal on crm.deals")


async def test_plan_says_which_right_is_missing(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.root.execute(
            f"REVOKE USAGE ON SCHEMA crm FROM PUBLIC; REASSIGN OWNED BY {OWNER} TO postgres;"
            f"GRANT USAGE ON SCHEMA postrider TO {OWNER}; GRANT SELECT ON postrider.capture TO {OWNER};"
            f"GRANT EXECUTE ON FUNCTION postrider.role_flaw TO {OWNER}"
        )
        database = Database(as_owner(database_dsn), pool_size=1)
        await database.open()
        try:
            store = Captures(database)
            with pytest.raises(DatabaseError) as caught:
                await store.plan(captures(SECTION))
            assert f"GRANT EXECUTE ON FUNCTION postrider.evaluate TO {OWNER}" in caught.value.hint
            await crm.root.execute(f"GRANT EXECUTE ON FUNCTION postrider.evaluate TO {OWNER}")
            with pytest.raises(UsageError, match=f"GRANT USAGE ON SCHEMA crm TO {OWNER}"):
                await store.plan(captures(SECTION))
            await crm.root.execute(f"GRANT USAGE ON SCHEMA crm TO {OWNER}")
            with pytest.raises(DatabaseError) as caught:
                await store.plan(captures(SECTION))
            assert 'GRANT USAGE ON SCHEMA "crm" TO postrider_capture' in caught.value.hint
            await crm.root.execute("GRANT USAGE ON SCHEMA crm TO postrider_capture")
            (step,) = await store.plan(captures(SECTION))
            assert step.action == "create"
        finally:
            await database.close()


async def test_row_security_hides_nothing_without_a_word(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.store.apply(captures(SECTION), NOW)
        await crm.owner.execute(SWAPS["row security"])
        await crm.owner.execute("INSERT INTO crm.deals (id, client_id) VALUES (1, 7)")
        assert await crm.runs() == 0, "a policy's code ran"
        (row,) = await crm.store.rejections()
        assert "row-level security" in row.reason
        with pytest.raises(UsageError, match=r"crm\.clients has row security"):
            await crm.store.plan(captures(SECTION))
        await crm.owner.execute("ALTER TABLE crm.clients DISABLE ROW LEVEL SECURITY")
        await crm.owner.execute("ALTER TABLE crm.deals ENABLE ROW LEVEL SECURITY")
        (step,) = await crm.store.plan(captures(SECTION))
        assert step.action == "keep", "a trigger gets its rows all the same"
        assert (await crm.store.recover(limit=10, after=0)).events == 1


async def test_a_daemons_login_plans_and_recovers(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        await crm.store.apply(captures(SECTION), NOW)
        await crm.owner.execute("INSERT INTO crm.deals (id, title) VALUES (1, repeat('x', 2000000))")
        shorter = SECTION.replace('title = "title"\n', "")
        await crm.store.apply(captures(shorter), NOW)
        # The same login, now as the daemon's.
        await crm.root.execute(f"GRANT postrider_daemon TO {OWNER}; REASSIGN OWNED BY {OWNER} TO postgres")
        database = Database(as_owner(database_dsn), pool_size=1)
        await database.open()
        try:
            (step,) = await Captures(database).plan(captures(shorter))
            assert step.action == "keep"
            assert (await Captures(database).recover(limit=10)).events == 1
        finally:
            await database.close()


async def test_drop_takes_the_rights_back_that_no_other_capture_needs(database_dsn: str) -> None:
    rights = """SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute
        WHERE attrelid = 'crm.clients'::regclass AND attnum > 0
          AND has_column_privilege('postrider_capture', attrelid, attnum, 'SELECT')"""
    other = SECTION.replace('object_type = "deal"', 'object_type = "sale"').replace(
        '["id", "name"]', '["id"]'
    )
    async with crm_of(database_dsn) as crm:
        await crm.root.execute("REVOKE USAGE ON SCHEMA crm FROM PUBLIC")
        await crm.store.apply(captures(SECTION + other), NOW)
        assert await crm.root.fetchval(rights) == ["id", "name"]
        await crm.store.drop(["deal"])
        assert await crm.root.fetchval(rights) == ["id"]
        await crm.store.apply((), NOW)
        assert await crm.root.fetchval(rights) is None
        assert not await crm.root.fetchval("SELECT has_schema_privilege('postrider_capture', 'crm', 'USAGE')")


async def test_each_role_has_only_the_rights_that_its_functions_need(database_dsn: str) -> None:
    async with crm_of(database_dsn) as crm:
        readable = await crm.root.fetch(
            """SELECT r.rolname || ' ' || c.relname || coalesce('.' || a.attname, '') AS one
               FROM pg_roles AS r, pg_class AS c
               LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
               WHERE c.relnamespace = 'postrider'::regnamespace AND c.relkind IN ('r', 'p', 'v')
                 AND r.rolname IN ('postrider_writer', 'postrider_capture', 'postrider_prober')
                 AND (has_column_privilege(r.oid, c.oid, a.attnum, 'SELECT')
                      OR has_any_column_privilege(r.oid, c.oid, 'UPDATE')
                      OR has_table_privilege(r.oid, c.oid, 'DELETE,TRUNCATE,TRIGGER'))"""
        )
        assert {
            row["one"].rpartition(".")[0] if "daemon" not in row["one"] else row["one"] for row in readable
        } == {
            "postrider_capture daemon.idle",
            "postrider_capture capture_deleted",
            "postrider_prober daemon.idle",
            "postrider_prober capture_deleted",
            "postrider_writer daemon.idle",
            "postrider_writer idempotency",
            "postrider_writer event_type",
            "postrider_writer catalogue",
            "postrider_capture setting",
            "postrider_prober setting",
            "postrider_writer setting",
        }
        owners = await crm.root.fetch(
            """SELECT DISTINCT r.rolname FROM pg_proc AS p JOIN pg_roles AS r ON r.oid = p.proowner
               WHERE p.pronamespace = 'postrider'::regnamespace AND p.prosecdef"""
        )
        assert {row["rolname"] for row in owners} == {
            "postrider_owner",
            "postrider_writer",
            "postrider_prober",
        }
        assert not await crm.root.fetch(
            """SELECT FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
               WHERE p.pronamespace = 'postrider'::regnamespace AND a.grantee = 0 AND p.prosecdef"""
        )


NOT_OURS = {
    "evaluate that runs as its caller": """
        CREATE OR REPLACE FUNCTION postrider.evaluate(query text, input json DEFAULT NULL)
        RETURNS SETOF record LANGUAGE plpgsql AS $$
          BEGIN PERFORM crm.seize(); RETURN QUERY EXECUTE query USING input; END $$""",
    "a namesake of evaluate": """
        CREATE FUNCTION postrider.evaluate(query text) RETURNS SETOF record
        LANGUAGE plpgsql AS $$ BEGIN PERFORM crm.seize(); RETURN QUERY EXECUTE query; END $$""",
    "a namesake of role_flaw": """
        CREATE FUNCTION postrider.role_flaw(role text) RETURNS text
        LANGUAGE plpgsql AS $$ BEGIN PERFORM crm.seize(); RETURN NULL; END $$""",
    "evaluate without its search path": """
        ALTER FUNCTION postrider.evaluate(text, json) SET search_path = crm, pg_catalog""",
    "another function that runs as its caller": """
        ALTER FUNCTION postrider.create_partition(text, date) SECURITY INVOKER""",
}


@pytest.mark.parametrize("change", NOT_OURS)
async def test_functions_that_a_member_of_the_roles_replaced_are_not_run(
    database_dsn: str, change: str
) -> None:
    """Membership, granted for the migration of another database, holds in this one too."""
    async with crm_of(database_dsn) as crm:
        await crm.store.apply(captures(SECTION), NOW)
        await crm.root.execute(f"GRANT postrider_owner, postrider_prober TO {OWNER}")
        await crm.owner.execute(NOT_OURS[change])
        runs = await crm.runs()
        for act in (
            crm.store.plan(captures(SECTION)),
            crm.store.apply(captures(SECTION), NOW),
            crm.store.recover(limit=1, after=0),
        ):
            with pytest.raises(DatabaseError, match="not as `postrider migrate` made it: postrider"):
                await act
        assert await crm.runs() == runs
        assert not await crm.owner_is_superuser()

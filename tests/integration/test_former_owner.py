"""A schema of an older release that belongs to a login with few rights: it loses nothing when a superuser
migrates, since its captures and its own statements go on to run as it."""

import asyncio
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from postrider.edges.resources import sql_dir
from postrider.store.database import DatabaseError
from postrider.store.migrations import Migration, Schema, read_schema
from postrider.store.patience import Patience
from tests.conftest import execute
from tests.support.cli import Cli
from tests.support.daemon_process import query, write_config
from tests.support.logins import login, user_of
from tests.support.migrating import migrate

SCHEMA = read_schema(sql_dir())
OLD_CAPTURE = """
CREATE SCHEMA crm;
CREATE TABLE crm.deals (id bigint PRIMARY KEY, title text);
CREATE FUNCTION postrider.capture_deal() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  largest integer;
BEGIN
  WITH written AS (
    INSERT INTO postrider.outbox (workspace_id, type, object_type, object_id, data)
      SELECT 'default', 'deal.created', 'deal', n.id::text, row_to_json(n.*) FROM new_rows AS n
      RETURNING octet_length(data::text) AS bytes)
  SELECT max(bytes) INTO largest FROM written;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  INSERT INTO postrider.capture_rejected (capture, operation, object_id, reason)
    VALUES ('deal', TG_OP, NULL, SQLERRM);
  RETURN NULL;
END $$;
CREATE TRIGGER postrider_capture_deal_insert AFTER INSERT ON crm.deals REFERENCING NEW TABLE AS new_rows
  FOR EACH STATEMENT EXECUTE FUNCTION postrider.capture_deal();
"""
"""As an older release applied it, in short."""


pytestmark = pytest.mark.usefixtures("template_database")
"""So that the roles exist, which are the whole server's."""


def migrated(dsn: str, to: int | None = None, schema: Schema = SCHEMA) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await migrate(connection, schema, to, patience=Patience(tries=2, pause_s=0.1))
        finally:
            await connection.close()

    asyncio.run(run())


def old_schema(owner_dsn: str) -> None:
    migrated(owner_dsn, 7)
    execute(owner_dsn, OLD_CAPTURE)


ROLES = "postrider_owner, postrider_writer, postrider_capture, postrider_prober"
CREATOR = "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {login}', current_database()); END $$"


def test_a_former_owners_captures_go_on_after_a_superuser_has_migrated(empty_database_dsn: str) -> None:
    with login(empty_database_dsn, CREATOR) as owner_dsn:
        old_schema(owner_dsn)
        migrated(empty_database_dsn)
        execute(owner_dsn, "INSERT INTO crm.deals VALUES (1, 'a')")
        assert query(empty_database_dsn, "SELECT reason FROM postrider.capture_rejected") == []
        events = query(owner_dsn, "SELECT type FROM postrider.outbox")
        assert [row["type"] for row in events] == ["deal.created"]


def test_a_former_owner_still_emits_and_reads_after_a_superuser_has_migrated(empty_database_dsn: str) -> None:
    with login(empty_database_dsn, CREATOR) as owner_dsn:
        old_schema(owner_dsn)
        migrated(empty_database_dsn)
        execute(owner_dsn, "SELECT postrider.emit('deal.updated', '{}'::json)")
        for table in ("outbox", "delivery", "attempt", "every_attempt", "outbox_default"):
            query(owner_dsn, f"SELECT count(*) FROM postrider.{table}")


def test_captures_that_another_than_the_owner_applied_go_on(empty_database_dsn: str) -> None:
    with (
        login(empty_database_dsn, CREATOR) as owner_dsn,
        login(empty_database_dsn) as applier_dsn,
    ):
        old_schema(owner_dsn)
        execute(
            empty_database_dsn,
            f"ALTER FUNCTION postrider.capture_deal() OWNER TO {user_of(applier_dsn)}",
        )
        migrated(empty_database_dsn)
        execute(owner_dsn, "INSERT INTO crm.deals VALUES (1, 'a')")
        assert query(empty_database_dsn, "SELECT reason FROM postrider.capture_rejected") == []
        assert len(query(empty_database_dsn, "SELECT FROM postrider.outbox")) == 1


TRAP = """
CREATE TABLE postrider.ran (who text);
CREATE FUNCTION postrider.trap() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN INSERT INTO postrider.ran VALUES (current_user); RETURN NEW; END $$;
CREATE FUNCTION postrider.trapped(value anyelement) RETURNS anyelement LANGUAGE plpgsql AS $$
  BEGIN INSERT INTO postrider.ran VALUES (current_user); RETURN value; END $$;
"""
NEWER = Schema(
    (*SCHEMA.migrations, Migration("more", "SELECT 1", SCHEMA.number + 1)),
    tuple(replace(each, sql=f"{each.sql}-- changed") for each in SCHEMA.functions),
)


@pytest.mark.parametrize(
    ("trap", "told"),
    [
        (
            "CREATE TRIGGER trap BEFORE INSERT ON postrider.migration FOR EACH ROW "
            "EXECUTE FUNCTION postrider.trap()",
            "postrider.migration, of .*, has trigger trap",
        ),
        (
            "ALTER TABLE postrider.migration ALTER applied_at SET DEFAULT postrider.trapped(now())",
            "has default postrider.trapped",
        ),
        (
            "ALTER TABLE postrider.migration ADD CHECK (postrider.trapped(number) > 0)",
            "has constraint migration_number_check",
        ),
        (
            """ALTER TABLE postrider.migration RENAME TO had;
               CREATE VIEW postrider.migration AS
                 SELECT postrider.trapped(number) AS number, name, checksum, breaks, applied_at
                 FROM postrider.had""",
            "has a view",
        ),
        (
            """DROP TABLE postrider.sql_function;
               CREATE TABLE postrider.sql_function (file text PRIMARY KEY, checksum text NOT NULL,
                 applied_at timestamptz DEFAULT now());
               CREATE TRIGGER trap AFTER INSERT ON postrider.sql_function FOR EACH ROW
                 EXECUTE FUNCTION postrider.trap()""",
            "postrider.sql_function, of .*, has trigger trap",
        ),
    ],
)
def test_what_a_former_owner_left_does_not_run_as_the_superuser_who_migrates(
    empty_database_dsn: str, trap: str, told: str
) -> None:
    with login(empty_database_dsn, CREATOR, f"GRANT {ROLES} TO {{login}}") as owner_dsn:
        migrated(owner_dsn)
        execute(owner_dsn, TRAP, "DELETE FROM postrider.ran", trap, "DELETE FROM postrider.ran")
        with pytest.raises(DatabaseError, match=told):
            migrated(empty_database_dsn, schema=NEWER)
        assert query(empty_database_dsn, "SELECT who FROM postrider.ran") == []


def test_the_command_migrates_for_a_former_owner_unless_it_left_something(
    empty_database_dsn: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, empty_database_dsn)
    with login(empty_database_dsn, CREATOR, f"GRANT {ROLES} TO {{login}}") as owner_dsn:
        migrated(owner_dsn, SCHEMA.number - 1)
        Cli(config)("migrate")
        execute(
            owner_dsn,
            TRAP,
            "CREATE TRIGGER trap BEFORE INSERT ON postrider.event_type FOR EACH ROW "
            "EXECUTE FUNCTION postrider.trap()",
            "DELETE FROM postrider.event_type",
        )
        assert "postrider.event_type, of" in Cli(config).fails("migrate")
        assert query(empty_database_dsn, "SELECT who FROM postrider.ran") == []

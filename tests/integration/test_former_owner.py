"""A schema of an older release that belongs to a login with few rights: it loses nothing when a superuser
migrates, since its captures and its own statements go on to run as it."""

import asyncio

import asyncpg
import pytest

from postrider.edges.resources import sql_dir
from postrider.store.migrations import read_schema
from tests.conftest import execute
from tests.support.daemon_process import query
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


def migrated(dsn: str, to: int | None = None) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        await migrate(connection, SCHEMA, to)
        await connection.close()

    asyncio.run(run())


def old_schema(owner_dsn: str) -> None:
    migrated(owner_dsn, 7)
    execute(owner_dsn, OLD_CAPTURE)


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

"""What a capture trigger costs the CRM: an UPDATE of 10,000 rows with and without it."""

import statistics
import time
import tomllib
from datetime import UTC, datetime
from typing import Any

import asyncpg

from postrider.domain.capture import parse_captures
from postrider.edges.resources import sql_dir
from postrider.store.captures import Captures
from postrider.store.database import Database
from postrider.store.migrations import migrate, read_migrations

ROWS = 10_000
_TABLES = f"""
CREATE SCHEMA crm;
CREATE TABLE crm.clients (id bigint PRIMARY KEY, name text);
INSERT INTO crm.clients SELECT n, 'client ' || n FROM generate_series(1, 1000) AS n;
CREATE TABLE crm.deals (
  id bigint PRIMARY KEY, public_id text UNIQUE, workspace_id text, title text, price integer,
  client_id bigint,
  stage_id integer, status text DEFAULT 'open', owner_id bigint, notes text, custom jsonb DEFAULT '{{}}',
  created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now()
);
CREATE INDEX ON crm.deals (workspace_id, stage_id);
CREATE INDEX ON crm.deals (client_id);
CREATE INDEX ON crm.deals (workspace_id, updated_at);
INSERT INTO crm.deals (id, public_id, workspace_id, title, price, client_id, stage_id, owner_id, notes)
  SELECT n, 'dl_' || n, 'ws_1', 'Deal number ' || n, n * 10, 1 + n % 1000, n % 7, n % 20, repeat('note ', 20)
  FROM generate_series(1, {ROWS}) AS n;
"""
_COLUMNS = (
    'id = "public_id"\ntitle = "title"\nprice = "price"\nstageId = "stage_id"\ncreatedAt = "created_at"\n'
)
_SECTION = """
[[capture]]
table = "crm.deals"
object_type = "deal"
object_id = "public_id"
workspace = "workspace_id"
[capture.columns]
"""
_DERIVED = """
[[capture.derived]]
type = "deal.stage_changed"
column = "stage_id"
[[capture.derived]]
type = "deal.won"
column = "status"
becomes = "won"
instead = true
"""
_CLIENT = 'client = { table = "crm.clients", where = { id = "client_id" }, columns = ["id", "name"] }\n'
SECTIONS = {
    "six columns": _SECTION + _COLUMNS,
    "with a related object and two derived events": _SECTION + _COLUMNS + _CLIENT + _DERIVED,
}


async def capture(server_dsn: str, rounds: int) -> list[dict[str, Any]]:
    """The median ratio, and the spread, of updates that take turns with the trigger and without it."""
    server = await asyncpg.connect(server_dsn)
    await server.execute("CREATE DATABASE bench_capture")
    await server.close()
    dsn = server_dsn.replace("/postgres?", "/bench_capture?")
    connection = await asyncpg.connect(dsn)
    database = Database(dsn, pool_size=1, pooled=True)
    await database.open()
    try:
        await migrate(connection, read_migrations(sql_dir()))
        await connection.execute(_TABLES)
        store = Captures(database)

        async def update() -> float:
            await connection.execute("VACUUM ANALYZE crm.deals")
            await connection.execute("TRUNCATE postrider.outbox, postrider.pending")
            await connection.execute("CHECKPOINT")
            started = time.perf_counter()
            await connection.execute("UPDATE crm.deals SET price = price + 1, updated_at = now()")
            return time.perf_counter() - started

        rows = []
        for name, text in SECTIONS.items():
            captures, mistakes = parse_captures(tomllib.loads(text)["capture"])
            assert not mistakes
            plain, captured = [], []
            for _ in range(rounds + 1):
                await store.drop(None, datetime.now(UTC))
                plain.append(await update())
                await store.apply(captures, datetime.now(UTC))
                captured.append(await update())
                assert await connection.fetchval("SELECT count(*) FROM postrider.pending") == ROWS
            # The first round reads the tables into memory.
            ratios = sorted(after / before for before, after in zip(plain[1:], captured[1:], strict=True))
            rows.append(
                {
                    "bench": f"UPDATE of {ROWS:,} rows, captured: {name}",
                    "without": f"{statistics.median(plain) * 1000:.0f} ms",
                    "with": f"{statistics.median(captured) * 1000:.0f} ms",
                    "ratio": f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                }
            )
        return rows
    finally:
        await database.close()
        await connection.close()

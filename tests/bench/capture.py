"""What a capture trigger costs the CRM: ms of an UPDATE of 10,000 rows with and without it."""

import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from postrider.domain.capture_sections import parse_captures
from postrider.store.database import Database
from tests.bench.report import Row, compared
from tests.bench.stage import Stage
from tests.support.captures import Captures

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


@asynccontextmanager
async def captured_crm(stage: Stage) -> AsyncIterator[Callable[[str | None], Awaitable[None]]]:
    """The CRM's tables, and a function that puts the triggers of one of SECTIONS on them, or none."""
    database = Database(stage.dsn, pool_size=1, keyed=False)
    await database.open()
    store = Captures(database)

    async def put(name: str | None) -> None:
        await store.drop(None)
        await stage.clear()
        await stage.connection.execute("VACUUM ANALYZE crm.deals")
        if name is not None:
            captures, mistakes = parse_captures(tomllib.loads(SECTIONS[name])["capture"])
            assert not mistakes
            await store.apply(captures, datetime.now(UTC))

    try:
        await stage.connection.execute(_TABLES)
        yield put
    finally:
        await store.drop(None)
        await database.close()
        await stage.connection.execute("DROP SCHEMA crm CASCADE")


async def capture(stage: Stage, rounds: int, _seconds: float) -> list[Row]:
    """Updates take turns with the trigger and without it; the first round reads the tables into memory."""
    rows = []
    async with captured_crm(stage) as put:
        for name in SECTIONS:
            plain, captured = [], []
            for _ in range(rounds + 1):
                await put(None)
                plain.append(await _update_ms(stage))
                await put(name)
                captured.append(await _update_ms(stage))
                assert await stage.connection.fetchval("SELECT count(*) FROM postrider.pending") == ROWS
            what = f"time of an UPDATE of {ROWS:,} rows, captured: {name}"
            rows.append(compared(what, "", plain[1:], captured[1:], "{:.0f} ms"))
    return rows


async def _update_ms(stage: Stage) -> float:
    await stage.connection.execute("CHECKPOINT")
    started = time.perf_counter()
    await stage.connection.execute("UPDATE crm.deals SET price = price + 1, updated_at = now()")
    return (time.perf_counter() - started) * 1000

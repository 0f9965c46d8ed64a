"""Rows that capture triggers set aside become events, as soon as that is possible.

What a table's owner defined runs when events are made, so that happens in a transaction that is rolled back,
by `postrider.evaluate`; only what came of it is written. The connection is closed afterwards, since such code
can leave things in a session.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from postrider.store.capture_rows import EVENT_COLUMNS
from postrider.store.capture_values import literal
from postrider.store.database import Connection, Database, translated_errors

LOCK_TIMEOUT = "250ms"
STATEMENT_TIMEOUT = "10s"
MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_BACKOFF_S = 3600

# Those whose capture is not applied wait until it is.
_CANDIDATES = """
SELECT id, capture FROM (
  SELECT id, capture, sum(size.bytes) OVER (ORDER BY id) - size.bytes AS bytes_before
  FROM postrider.capture_rejected AS r CROSS JOIN LATERAL (
    SELECT coalesce(pg_column_size(r.old_row), 0) + coalesce(pg_column_size(r.new_row), 0) AS bytes) AS size
  WHERE (old_row IS NOT NULL OR new_row IS NOT NULL)
    AND CASE WHEN $2::bigint IS NULL THEN due <= now() ELSE id > $2 END
    AND capture = coalesce($3, capture)
    AND to_regprocedure(format('postrider.%I(text,json,json,json)', 'capture_' || capture)) IS NOT NULL
  ORDER BY id LIMIT $1
) AS oldest WHERE bytes_before < $4 ORDER BY id
"""

_EVALUATE = f"""
SELECT id, {EVENT_COLUMNS} FROM postrider.evaluate($1, (
    SELECT json_agg(r ORDER BY r.id) FROM (
      SELECT id, operation, old_row, new_row, settings FROM postrider.capture_rejected
      WHERE id = ANY($2)) AS r))
  AS made (id bigint, workspace_id text, type text, object_type text, object_id text, data text,
           previous_attributes text, actor text, related text)
"""  # noqa: S608 - names only

_TAKE = """
DELETE FROM postrider.capture_rejected WHERE id IN (
  SELECT id FROM postrider.capture_rejected WHERE id = ANY($1) ORDER BY id FOR UPDATE SKIP LOCKED)
RETURNING id, at
"""

_INSERT = f"""
INSERT INTO postrider.outbox (occurred_at, {EVENT_COLUMNS})
SELECT at, workspace_id, type, object_type, object_id, data::json, previous_attributes::json, actor::json,
       related::json
FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
            $8::text[], $9::text[]) WITH ORDINALITY AS made (at, {EVENT_COLUMNS}, place)
ORDER BY place
"""  # noqa: S608 - names only

_POSTPONE = f"""
UPDATE postrider.capture_rejected AS r SET attempts = r.attempts + 1, reason = p.reason,
  logged = r.logged AND r.reason = p.reason,
  due = now() + least(5 * 2 ^ least(r.attempts, 20), {MAX_BACKOFF_S}) * interval '1 second'
FROM unnest($1::bigint[], $2::text[]) AS p (id, reason) WHERE r.id = p.id
"""  # noqa: S608 - a number only

_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What came of a batch."""

    rows: int
    """Rows that are done; one may make several events, or none."""
    events: int
    kept: int
    """Rows that stay: with the reason of this time, or because a lock is in the way."""
    last: int | None
    """The id of the batch's last row; None if there was nothing to do."""


async def recover(database: Database, *, limit: int, name: str | None, after: int | None) -> Recovery:
    """Make events of up to `limit` rows, oldest first, in their order: those of one capture, or of all; those
    whose time has come, or with `after` all that follow this id."""
    async with database.connection() as pooled:
        candidates = await pooled.fetch(_CANDIDATES, limit, after, name, MAX_BATCH_BYTES)
    if not candidates:
        return Recovery(0, 0, 0, None)
    with translated_errors():
        connection = await database.dedicated()
        try:
            made: list[asyncpg.Record] = []
            problems: dict[int, str | None] = {}
            for capture in dict.fromkeys(row["capture"] for row in candidates):
                ids = [row["id"] for row in candidates if row["capture"] == capture]
                made += await _events(connection, capture, ids, problems)
            done = [row["id"] for row in candidates if row["id"] not in problems]
            made.sort(key=lambda event: int(event["id"]))
            try:
                rows, events = await _write(connection, done, made)
            except _GONE:
                raise
            except asyncpg.PostgresError as error:
                problems |= {each: _problem(error) for each in done}
                rows = events = 0
            await _postpone(connection, {each: why for each, why in problems.items() if why is not None})
            return Recovery(rows, events, len(problems), candidates[-1]["id"])
        finally:
            await connection.close(timeout=5)


async def _events(
    connection: Connection, capture: str, ids: Sequence[int], problems: dict[int, str | None]
) -> list[asyncpg.Record]:
    """The events of rows, all at once; where that fails, one by one, and the others go to `problems`."""
    try:
        return await _evaluate(connection, capture, ids)
    except _GONE:
        raise
    except asyncpg.PostgresError as error:
        if len(ids) == 1 or isinstance(error, asyncpg.LockNotAvailableError):
            problems.update(dict.fromkeys(ids, _problem(error)))
            return []
    made: list[asyncpg.Record] = []
    for each in ids:
        made += await _events(connection, capture, [each], problems)
    return made


def _problem(error: asyncpg.PostgresError) -> str | None:
    """Why a row stays; None if only a lock is in the way, which says nothing about the row."""
    return None if isinstance(error, asyncpg.LockNotAvailableError) else str(error)


async def _evaluate(connection: Connection, capture: str, ids: Sequence[int]) -> list[asyncpg.Record]:
    function = 'postrider."' + f"capture_{capture}".replace('"', '""') + '"'
    query = f"""
        SELECT (c->>'id')::bigint, e.workspace_id, e.type, e.object_type, e.object_id, e.data::text,
               e.previous_attributes::text, e.actor::text, e.related::text
        FROM json_array_elements($1) AS c CROSS JOIN LATERAL {function}(
          c->>'operation', (c->>'old_row')::json, (c->>'new_row')::json, (c->>'settings')::json) AS e"""  # noqa: S608
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(f"SET LOCAL statement_timeout = {literal(STATEMENT_TIMEOUT)}")
        return await connection.fetch(_EVALUATE, query, list(ids))
    finally:
        await transaction.rollback()


async def _write(
    connection: Connection, ids: Sequence[int], made: Sequence[asyncpg.Record]
) -> tuple[int, int]:
    """Take the rows away and write their events, together; return how many of each. Rows that another took at
    the same moment are left to it."""
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = {literal(LOCK_TIMEOUT)}")
        taken = {row["id"]: row["at"] for row in await connection.fetch(_TAKE, list(ids))}
        events = [event for event in made if event["id"] in taken]
        if events:
            columns = [[event[name] for event in events] for name in EVENT_COLUMNS.split(", ")]
            await connection.execute(_INSERT, [taken[event["id"]] for event in events], *columns)
    return len(taken), len(events)


async def _postpone(connection: Connection, problems: Mapping[int, str]) -> None:
    if problems:
        await connection.execute(_POSTPONE, list(problems), list(problems.values()))

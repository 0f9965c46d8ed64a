"""Rows that capture triggers set aside become events, as soon as that is possible.

What a table's owner defined runs when events are made, so that happens in a transaction that is rolled back,
by `postrider.evaluate`; only what came of it is written. The connection is closed afterwards, since such code
can leave things in a session.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import asyncpg

from postrider.domain.capture_steps import Recovery
from postrider.store import captured_events
from postrider.store.capture_rows import EVENT_COLUMNS
from postrider.store.capture_values import quoted
from postrider.store.database import Connection, pin

ANSWER_TIMEOUT_S = 5.0
"""How much later than PostgreSQL this side gives up, so that a slow statement fails as one, with a reason."""
MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_BACKOFF_S = 3600

# Rows of captures that are not applied wait until these are; they cost no look.
_APPLIED = """
SELECT c.name FROM postrider.capture AS c WHERE c.name = coalesce($1, c.name)
  AND to_regprocedure(format('postrider.%I(text,json,json,json)', 'capture_' || c.name)) IS NOT NULL
"""
_ROW = """
SELECT r.id, r.at, r.due, r.capture,
  coalesce(pg_column_size(r.old_row), 0) + coalesce(pg_column_size(r.new_row), 0) AS bytes
FROM postrider.capture_rejected AS r
"""
# Each capture has its share of a batch: one whose rows can't be done for now holds up no other.
_DUE = f"""
WITH waiting AS MATERIALIZED (
  SELECT a.name FROM ({_APPLIED}) AS a CROSS JOIN LATERAL (
    SELECT FROM postrider.capture_rejected AS r WHERE r.capture = a.name AND r.due <= now()
    ORDER BY r.due LIMIT 1) AS one
), share AS (SELECT greatest($2 / n, 1) AS rows, $3 / n AS bytes
            FROM (SELECT greatest(count(*), 1) AS n FROM waiting) AS w)
SELECT id, capture FROM (
  SELECT r.id, r.at, r.capture,
    sum(r.bytes) OVER (PARTITION BY r.capture ORDER BY r.due, r.id) - r.bytes AS bytes_before
  FROM waiting CROSS JOIN LATERAL (
    {_ROW} WHERE r.capture = waiting.name AND r.due <= now()
    ORDER BY r.due, r.id LIMIT (SELECT rows FROM share)) AS r
) AS oldest WHERE bytes_before < (SELECT bytes FROM share) ORDER BY at, id
"""  # noqa: S608 - statements of this module
_FOLLOWING = f"""
SELECT id, capture FROM (
  SELECT r.id, r.at, r.capture, sum(r.bytes) OVER (ORDER BY r.id) - r.bytes AS bytes_before
  FROM ({_ROW} WHERE r.id > $4 AND r.due IS NOT NULL AND r.capture IN ({_APPLIED})
        ORDER BY r.id LIMIT $2) AS r
) AS oldest WHERE bytes_before < $3 ORDER BY at, id
"""  # noqa: S608

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

# A row that another works on at the moment is left to it.
_POSTPONE = f"""
UPDATE postrider.capture_rejected AS r SET attempts = r.attempts + 1, reason = p.reason,
  logged = r.logged AND r.reason = p.reason,
  due = now() + least(5 * 2 ^ least(r.attempts, 20), {MAX_BACKOFF_S}) * interval '1 second'
FROM unnest($1::bigint[], $2::text[]) AS p (id, reason)
WHERE r.id = p.id AND r.id IN (
  SELECT id FROM postrider.capture_rejected WHERE id = ANY($1) ORDER BY id FOR UPDATE SKIP LOCKED)
"""  # noqa: S608 - a number only

_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    id: int
    capture: str


async def candidates(
    connection: Connection, *, limit: int, name: str | None = None, after: int | None = None
) -> list[Candidate]:
    """Up to `limit` rows in the order of their changes: those of one capture, or of all; those whose time has
    come, or with `after` all that follow this id."""
    choice = (_DUE,) if after is None else (_FOLLOWING, after)
    rows = await connection.fetch(choice[0], name, limit, MAX_BATCH_BYTES, *choice[1:])
    return [Candidate(row["id"], row["capture"]) for row in rows]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a statement may take that makes or writes events, in seconds."""

    lock_s: float = 0.25
    """So long it waits for a lock."""
    statement_s: float = 10.0

    @property
    def command_timeout_s(self) -> float:
        """What the connection should have."""
        return self.statement_s + ANSWER_TIMEOUT_S


PATIENCE = Patience()


async def recover(
    connection: Connection,
    rows: Sequence[Candidate],
    *,
    enough: Callable[[], bool] = lambda: False,
    patience: Patience = PATIENCE,
) -> Recovery:
    """Make events of rows. What an owner defined may leave things in the session, so `connection` is one for
    this alone, in no transaction, and is closed afterwards.

    No further part of the batch is begun when that is `enough`, once it is known what becomes of some row.
    """
    batch = _Batch(connection, enough, patience)
    for capture in dict.fromkeys(row.capture for row in rows):
        await batch.make(capture, [row.id for row in rows if row.capture == capture])
    await batch.write([row.id for row in rows if row.id in batch.made])
    await batch.postpone()
    return Recovery(batch.rows, batch.events, len(batch.problems), max(row.id for row in rows))


@dataclass(slots=True)
class _Batch:
    """Rows on their way, by id. Where many fail together they are halved, until those are found that do."""

    connection: Connection
    enough: Callable[[], bool]
    patience: Patience
    made: dict[int, list[asyncpg.Record]] = field(default_factory=dict)
    """The events of each row."""
    problems: dict[int, str | None] = field(default_factory=dict)
    """Why rows stay; None if only a lock is in the way, which says nothing about the row."""
    rows: int = 0
    events: int = 0

    async def make(self, capture: str, ids: Sequence[int]) -> None:
        """Make the events of rows of a capture."""
        # What is left for the next time must not be all of the batch again, or nothing would ever be done.
        known = self.made or self.problems
        if known and self.enough():
            return
        try:
            events = await self._evaluate(capture, ids)
        except _GONE:
            raise
        except asyncpg.PostgresError as error:
            for half in self._halves(ids, error):
                await self.make(capture, half)
        else:
            self.made |= {each: [] for each in ids}
            for event in events:
                self.made[event["id"]].append(event)

    async def write(self, ids: Sequence[int]) -> None:
        """Take rows away and write their events, together. Rows that another took are left to it."""
        if not ids:
            return
        try:
            async with self._transaction():
                found = await self.connection.fetch(_TAKE, list(ids))
                taken = {row["id"]: row["at"] for row in found}
                events = [event for each in ids if each in taken for event in self.made[each]]
                if events:
                    await captured_events.insert(
                        self.connection, [(taken[each["id"]], each) for each in events]
                    )
        except _GONE:
            raise
        except asyncpg.PostgresError as error:
            for half in self._halves(ids, error):
                await self.write(half)
        else:
            self.rows += len(taken)
            self.events += len(events)

    async def postpone(self) -> None:
        """Let rows that failed wait: the longer, the more often they did."""
        reasons = {each: why for each, why in self.problems.items() if why is not None}
        if reasons:
            with suppress(asyncpg.LockNotAvailableError):  # the next time tries again
                async with self._transaction():
                    await self.connection.execute(_POSTPONE, list(reasons), list(reasons.values()))

    def _halves(self, ids: Sequence[int], error: asyncpg.PostgresError) -> tuple[Sequence[int], ...]:
        """What to try in place of rows that failed together."""
        if isinstance(error, asyncpg.LockNotAvailableError):
            self.problems |= dict.fromkeys(ids)
            return ()
        if len(ids) == 1:
            slow = isinstance(error, asyncpg.QueryCanceledError)
            self.problems[ids[0]] = (
                f"it takes longer than {self.patience.statement_s:g} s" if slow else str(error)
            )
            return ()
        middle = len(ids) // 2
        return ids[:middle], ids[middle:]

    async def _evaluate(self, capture: str, ids: Sequence[int]) -> list[asyncpg.Record]:
        query = f"""
            SELECT (c->>'id')::bigint, e.workspace_id, e.type, e.object_type, e.object_id, e.data::text,
                   e.previous_attributes::text, e.actor::text, e.related::text
            FROM json_array_elements($1) AS c CROSS JOIN LATERAL postrider.{quoted(f"capture_{capture}")}(
              c->>'operation', (c->>'old_row')::json, (c->>'new_row')::json, (c->>'settings')::json) AS e"""  # noqa: S608
        async with self._transaction(undone=True):
            return await self.connection.fetch(_EVALUATE, query, list(ids))

    @asynccontextmanager
    async def _transaction(self, *, undone: bool = False) -> AsyncIterator[None]:
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            await pin(self.connection)
            await self.connection.execute(
                f"SET LOCAL statement_timeout = {self.patience.statement_s * 1000:.0f}; "
                f"SET LOCAL lock_timeout = {self.patience.lock_s * 1000:.0f}"
            )
            yield
        except BaseException:
            await transaction.rollback()
            raise
        if undone:
            await transaction.rollback()
        else:
            await transaction.commit()

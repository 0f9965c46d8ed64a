"""Events: the queue of what is not yet fanned out (claim, release), and reading the outbox."""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from postrider.domain.errors import UsageError
from postrider.domain.model import MAX_DATA_BYTES, Event, emitted_at_s
from postrider.store.database import Database

_EVENT_COLUMNS = f"""
  id, workspace_id, type, object_type, object_id, occurred_at, octet_length(data) AS data_bytes,
  CASE WHEN octet_length(data) <= {MAX_DATA_BYTES} THEN data END AS data,
  CASE WHEN octet_length(previous_attributes::text) <= {MAX_DATA_BYTES} THEN previous_attributes END
    AS previous_attributes, actor, related, test
"""
# Joined to nothing, a large value is fetched and unpacked once; else again wherever it is mentioned.
# The driver knows no year but 1 to 9999.
_EVENTS = """
(SELECT id, workspace_id, type, object_type, object_id,
        least(greatest(occurred_at, timestamptz '0001-01-02 00:00+00'), timestamptz '9999-12-30 00:00+00')
          AS occurred_at,
        data::text || '' AS data,
        previous_attributes, actor, related, test
 FROM postrider.outbox WHERE {} OFFSET 0)
"""

# $2: where to begin. The limit is no parameter: PostgreSQL would take it for a tenth of the table, and plan
# anew each time, at twice the price of the claim. The subquery with LIMIT keeps the planner from reading all
# of the outbox, whatever it thinks of the number of rows.
_CLAIM = f"""
WITH taken AS (
  DELETE FROM postrider.pending WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM postrider.pending WHERE event_id >= $2 ORDER BY event_id LIMIT {{limit}}
    FOR UPDATE SKIP LOCKED
  ))
  RETURNING event_id, workspace_id, redo
), claim AS (
  INSERT INTO postrider.claim (owner, event_ids)
  SELECT $1, array_agg(event_id ORDER BY event_id) FROM taken HAVING count(*) > 0 RETURNING id
)
SELECT (SELECT id FROM claim) AS claim_id, (SELECT version FROM postrider.endpoint_revision) AS version,
       taken.event_id, taken.redo, event.*
FROM taken LEFT JOIN LATERAL (
  SELECT {_EVENT_COLUMNS} FROM {
    _EVENTS.format("id = taken.event_id AND workspace_id = taken.workspace_id LIMIT 1")
} AS o
) AS event ON true
ORDER BY taken.event_id
"""  # noqa: S608 (constant)

_JSON_ARGUMENTS = frozenset({"previous_attributes", "actor", "related"})

# Gives back the events of claims, less those that retention removed.
REQUEUE = """
INSERT INTO postrider.pending (event_id, workspace_id, redo)
SELECT o.id, o.workspace_id, true FROM unnest($1::uuid[]) AS given (id) CROSS JOIN LATERAL (
  SELECT id, workspace_id FROM postrider.outbox WHERE id = given.id OFFSET 0
) AS o
ON CONFLICT DO NOTHING
"""

_NIL = UUID(int=0)
_LOOK_BACK = 8
"""Claims. Behind the newest event that was claimed so many claims ago, most claims look for no more."""
_FULL_SHARE = 0.02
"""Of the time goes into claims that look at all of the queue."""


@dataclass(frozen=True, slots=True)
class ClaimedEvents:
    """A batch of events taken out of the queue."""

    claim_id: int
    events: list[Event]
    """In the order of their ids."""
    redo: list[UUID]
    """Events that an earlier owner gave up: some of their deliveries may be recorded already."""
    missing: int
    """Events in the queue that the outbox does not have."""
    version: UUID
    """Of the endpoints, as of the claim."""


BACKLOG_LIMIT = 1_000_000
BACKLOG = f"""
SELECT (SELECT count(*) FROM (SELECT FROM postrider.pending LIMIT {BACKLOG_LIMIT}) AS p)
         + (SELECT coalesce(sum(cardinality(event_ids)), 0) FROM postrider.claim) AS events,
       least((SELECT event_id FROM postrider.pending ORDER BY event_id LIMIT 1),
             (SELECT event_ids[1] FROM postrider.claim ORDER BY event_ids[1] LIMIT 1)) AS oldest
"""  # noqa: S608 (constant)
"""Counting stops at the limit."""


@dataclass(frozen=True, slots=True)
class Backlog:
    events: int
    """Events not yet fanned out, or of batches that are not recorded in full."""
    oldest: datetime | None
    """When the oldest of them was emitted."""


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._newest: deque[UUID] = deque([_NIL], maxlen=_LOOK_BACK)
        """The newest event claimed so far, after each of the last claims."""
        self._full_at = 0.0

    async def claim(self, owner: int, limit: int) -> ClaimedEvents | None:
        """Take some pending events for daemon `owner`, oldest first; None if there are none.

        At most `limit`, which is rounded down to a power of two.

        While another session holds an old snapshot, the rows of past claims can't be cleaned away, and
        every look at the whole queue passes over them. So most claims begin behind those. An event that was
        committed long after others with later ids is found by the next look at all of the queue: as
        often as these may take `_FULL_SHARE` of the time.
        """
        limit = 1 << (limit.bit_length() - 1)  # few different statements
        started = time.monotonic()
        full = started >= self._full_at
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                _CLAIM.format(limit=limit), owner, _NIL if full else self._newest[0]
            )
        if full:
            ended = time.monotonic()
            self._full_at = ended + (ended - started) / _FULL_SHARE
        if not rows:
            return None
        self._newest.append(max(self._newest[-1], rows[-1]["event_id"]))
        events = [_event(row) for row in rows if row["id"] is not None]
        redo = [row["event_id"] for row in rows if row["redo"]]
        return ClaimedEvents(rows[0]["claim_id"], events, redo, len(rows) - len(events), rows[0]["version"])

    async def read(self, event_ids: Sequence[UUID]) -> list[Event]:
        """The events in the order of their ids; ids that retention removed are left out."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"SELECT {_EVENT_COLUMNS} FROM {_EVENTS.format('id = ANY($1::uuid[])')} AS o ORDER BY id",  # noqa: S608 (constant)
                event_ids,
            )
        return [_event(row) for row in rows]

    async def release(self, owner: int, claim_ids: Iterable[int]) -> int:
        """Give back claims, for any daemon to take; return how many events they held."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(
                "DELETE FROM postrider.claim WHERE id = ANY($2::bigint[]) AND owner = $1 RETURNING event_ids",
                owner,
                list(claim_ids),
            )
            event_ids = [event_id for row in rows for event_id in row["event_ids"]]
            await connection.execute(REQUEUE, event_ids)
        return len(event_ids)

    async def claims(self, owner: int) -> set[int]:
        """The claims that the database thinks `owner` holds."""
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT id FROM postrider.claim WHERE owner = $1", owner)
        return {row["id"] for row in rows}

    async def list_events(
        self,
        *,
        workspace_id: str | None,
        type_pattern: str | None,
        after: UUID | None,
        newest_first: bool,
        limit: int,
    ) -> list[Event]:
        """The events that come `after` one in that order. `type_pattern` is an event type or `deal.*`."""
        exact = type_pattern if type_pattern and not type_pattern.endswith("*") else None
        prefix = type_pattern[:-1] if type_pattern and type_pattern.endswith("*") else None
        direction, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
        chosen = f"""
          ($1::text IS NULL OR workspace_id = $1) AND ($2::text IS NULL OR type = $2)
          AND ($3::text IS NULL OR starts_with(type, $3)) AND ($4::uuid IS NULL OR id {beyond} $4)
          ORDER BY id {direction} LIMIT $5"""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"SELECT {_EVENT_COLUMNS} FROM {_EVENTS.format(chosen)} AS o ORDER BY id {direction}",  # noqa: S608 (constants)
                workspace_id,
                exact,
                prefix,
                after,
                limit,
            )
        return [_event(row) for row in rows]

    async def is_pending(self, event_id: UUID) -> bool:
        """Whether deliveries of an event may still have to be recorded."""
        async with self._database.connection() as connection:
            pending: bool = await connection.fetchval(
                """SELECT EXISTS (SELECT FROM postrider.pending WHERE event_id = $1)
                       OR EXISTS (SELECT FROM postrider.claim WHERE $1 = ANY(event_ids))""",
                event_id,
            )
        return pending

    async def backlog(self) -> Backlog:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(BACKLOG)
        assert row is not None
        return Backlog(row["events"], emitted_at(row["oldest"]))

    async def emit(self, event_type: str, data: str, **optional: str | None) -> str:
        """Call postrider.emit in a transaction of its own; return the public id of the event.

        Raises UsageError for arguments that it refuses.
        """
        names = [name for name, value in optional.items() if value is not None]
        arguments = "".join(
            f", {name} => ${number}::{'json' if name in _JSON_ARGUMENTS else 'text'}"
            for number, name in enumerate(names, start=3)
        )
        async with self._database.connection() as connection:
            try:
                event_id: str = await connection.fetchval(
                    f"SELECT postrider.emit($1::text, $2::json{arguments})",
                    event_type,
                    data,
                    *(optional[name] for name in names),
                )
            except (asyncpg.InvalidParameterValueError, asyncpg.ProgramLimitExceededError) as error:
                raise UsageError(error.args[0], error.hint or "") from error
            except asyncpg.InvalidTextRepresentationError as error:
                raise UsageError(f"{error.args[0]}: {error.detail}", "Pass valid JSON.") from error
        return event_id


def emitted_at(event_id: UUID | None) -> datetime | None:
    return None if event_id is None else datetime.fromtimestamp(emitted_at_s(event_id), UTC)


def _event(row: asyncpg.Record) -> Event:
    return Event(
        id=row["id"],
        workspace_id=row["workspace_id"],
        type=row["type"],
        data=row["data"],
        data_bytes=row["data_bytes"],
        previous_attributes=row["previous_attributes"],
        object_type=row["object_type"],
        object_id=row["object_id"],
        actor=row["actor"],
        related=row["related"],
        occurred_at=row["occurred_at"],
        test=row["test"],
    )

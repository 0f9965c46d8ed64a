"""Events: the queue of what is not yet fanned out (claim, release), and reading the outbox."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from uuid import UUID

import asyncpg
import structlog
from msgspec import structs

from postrider.domain.model import MAX_DATA_BYTES, Event, emitted_at_s, event_public_id
from postrider.domain.status import MAX_COUNTED
from postrider.domain.timeshare import TimeShare
from postrider.store.database import Connection

log = structlog.get_logger()

_JSON_COLUMNS = ("data", "previous_attributes", "actor", "related")
ALL_LARGE = "2147483647"
INLINE_BYTES = 65_536
"""Larger events are not read by claims: their deliveries wait in the database until they are sent."""
_ASSUMED_BYTES = 4_096
"""Of a queued event whose size is not known."""


def events_query(condition: str, *, most: int, known: str = "NULL::integer", escaped: bool = False) -> str:
    """A query of events. JSON columns that have more than `most` bytes together are left out; `known` is that
    number where it need not be found out. `escaped` writes texts so that any bytes can be read.

    What is joined to nothing (OFFSET 0) is fetched and unpacked once, else again wherever it is mentioned.
    The driver knows no year but 1 to 9999.
    """
    lengths = {"workspace_id": 256, "type": 256, "object_type": 256, "object_id": 1024}
    texts = ", ".join(
        f"encode(convert_to(left(o.{name}, {length}), 'SQL_ASCII'), 'escape') AS {name}"
        if escaped
        else f"left(o.{name}, {length}) AS {name}"
        for name, length in lengths.items()
    )
    unpacked = ", ".join(
        f"CASE WHEN o.known IS NULL OR o.known <= {most} THEN o.{name}::text || '' END AS {name}"
        for name in _JSON_COLUMNS
    )
    size = " + ".join(f"coalesce(octet_length({name}), 0)" for name in _JSON_COLUMNS)
    kept = ", ".join(f"CASE WHEN data_bytes <= {most} THEN {name} END AS {name}" for name in _JSON_COLUMNS)
    return f"""
SELECT id, workspace_id, type, object_type, object_id, occurred_at, test, data_bytes, {kept}
FROM (
  SELECT *, coalesce(known, {size}) AS data_bytes FROM (
    SELECT o.id, {texts}, o.test, o.known, {unpacked},
           least(greatest(o.occurred_at, timestamptz '0001-01-02 00:00+00'),
                 timestamptz '9999-12-30 00:00+00') AS occurred_at
    FROM (SELECT *, {known} AS known FROM postrider.outbox WHERE {condition}) AS o OFFSET 0
  ) AS unpacked
) AS sized"""  # noqa: S608 (constants)


# $2: where to begin; $3: the claim's id; $4: bytes of JSON that may be read, the first event excepted.
# The limit is no parameter: PostgreSQL would take it for a tenth of the table, and plan anew each time, at
# twice the price of the claim. The subquery with LIMIT keeps the planner from reading all of the outbox,
# whatever it thinks of the number of rows.
_CLAIM = f"""
WITH queued AS (
  SELECT ctid AS place, event_id, coalesce(bytes, {_ASSUMED_BYTES}) AS bytes FROM postrider.pending
  WHERE event_id >= $2 AND EXISTS (SELECT FROM postrider.daemon WHERE id = $1)
  ORDER BY event_id LIMIT {{limit}} FOR UPDATE SKIP LOCKED
), taken AS (
  DELETE FROM postrider.pending WHERE ctid = ANY (ARRAY(
    SELECT place FROM (
      SELECT place, sum(read) OVER (ORDER BY event_id) - read AS before
      FROM (SELECT place, event_id, CASE WHEN bytes <= {INLINE_BYTES} THEN bytes ELSE 0 END AS read
            FROM queued) AS q
    ) AS summed WHERE before < $4
  ))
  RETURNING event_id, workspace_id, bytes, redo
), claim AS (
  INSERT INTO postrider.claim (id, owner, event_ids)
  SELECT $3, $1, array_agg(event_id ORDER BY event_id) FROM taken HAVING count(*) > 0
)
SELECT (SELECT version FROM postrider.endpoint_revision) AS version, taken.event_id, taken.redo, event.*
FROM taken LEFT JOIN LATERAL ({{events}}) AS event ON true
ORDER BY taken.event_id
"""  # noqa: S608 (constant)
_OF_TAKEN = "id = taken.event_id AND workspace_id = taken.workspace_id LIMIT 1"
_TAKEN = events_query(_OF_TAKEN, most=INLINE_BYTES, known="taken.bytes")
_NO_EVENT = "SELECT NULL::uuid AS id"

_GIVEN = "id = ANY($1::uuid[])"
_READ = f"{events_query(_GIVEN, most=MAX_DATA_BYTES)} ORDER BY id"
_READ_NO_JSON = f"{events_query(_GIVEN, most=0, known=ALL_LARGE)} ORDER BY id"
_READ_ESCAPED = events_query(_GIVEN, most=0, known=ALL_LARGE, escaped=True)

# Gives back the events of claims, less those that retention removed.
REQUEUE = """
INSERT INTO postrider.pending (event_id, workspace_id, redo)
SELECT o.id, o.workspace_id, true FROM unnest($1::uuid[]) AS given (id) CROSS JOIN LATERAL (
  SELECT id, workspace_id FROM postrider.outbox WHERE id = given.id OFFSET 0
) AS o
ON CONFLICT DO NOTHING
"""

UNREADABLE = (
    asyncpg.CharacterNotInRepertoireError,  # a database in SQL_ASCII holds what is not UTF-8
    asyncpg.UntranslatableCharacterError,
    asyncpg.DataCorruptedError,
    asyncpg.InternalServerError,  # a value stored out of line has lost a part
)
"""Errors of a query that reads an event whose row is damaged."""
_NIL = UUID(int=0)
_LOOK_BACK = 8
"""Claims. Most look for nothing that lies before the ends of so many claims before them."""
_FULL_SHARE = 0.02
"""Of the time goes into claims that look at all of the queue,"""
_FULL_LOOK_S = 30.0
"""and they are at most so far apart."""


@dataclass(frozen=True, slots=True)
class ClaimedEvents:
    """A batch of events taken out of the queue."""

    claim_id: int
    events: list[Event]
    """In the order of their ids; those above INLINE_BYTES without their JSON, or all if one can't be read."""
    redo: list[UUID]
    """Events that an earlier owner gave up: some of their deliveries may be recorded already."""
    missing: int
    """Events in the queue that the outbox does not have."""
    version: UUID
    """Of the endpoints, as of the claim."""
    more: bool
    """It took as much as it might: there may be more."""


BACKLOG_LIMIT = MAX_COUNTED
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


class Pending:
    """The queue of events not yet fanned out, as one daemon looks at it."""

    def __init__(self, monotonic: Callable[[], float], new_id: Callable[[], int]) -> None:
        """`monotonic`: seconds that only grow; `new_id`: a random one of 63 bits."""
        self._monotonic = monotonic
        self._new_id = new_id
        self._newest: deque[UUID] = deque([_NIL], maxlen=_LOOK_BACK)
        """The newest event of each of the last claims."""
        self._full_looks = TimeShare(_FULL_SHARE, _FULL_LOOK_S)

    def __repr__(self) -> str:
        return f"<Pending from {min(self._newest)}>"

    async def claim(
        self, connection: Connection, owner: int, limit: int, most_bytes: int
    ) -> ClaimedEvents | None:
        """Take some pending events for daemon `owner`, oldest first; None if there are none, or if others
        took the daemon for dead.

        At most `limit`, which is rounded down to a power of two, and about `most_bytes` of JSON; always one.

        While another session holds an old snapshot, the rows of past claims can't be cleaned away, and
        every look at the whole queue passes over them. So most claims begin behind those: at the earliest
        of the events that the last claims ended with, which an event of a clock that runs ahead does not
        move. An event that was committed long after others with later ids is found by the next look at all
        of the queue: as often as these may take `_FULL_SHARE` of the time.
        """
        limit = 1 << (limit.bit_length() - 1)  # few different statements
        claim_id = self._new_id()
        started = self._monotonic()
        full = self._full_looks.due(started)
        arguments = (owner, _NIL if full else min(self._newest), claim_id, most_bytes)
        events = None
        try:
            rows = await _try(connection, _claim_statement(limit, _TAKEN), *arguments)
        except UNREADABLE:
            rows = await connection.fetch(_claim_statement(limit, _NO_EVENT), *arguments)
            events = await _read_safely(connection, [row["event_id"] for row in rows], _READ_NO_JSON)
        if full:
            self._full_looks.spent(started, self._monotonic())
        if not rows:
            return None
        self._newest.append(rows[-1]["event_id"])
        if events is None:
            events = [event_of(row) for row in rows if row["id"] is not None]
        redo = [row["event_id"] for row in rows if row["redo"]]
        read = sum(each.data_bytes for each in events if each.data is not None)
        more = len(rows) == limit or read >= most_bytes
        return ClaimedEvents(claim_id, events, redo, len(rows) - len(events), rows[0]["version"], more)

    def look_at_all(self) -> None:
        """Let the next claim look at all of the queue: something old may have come back to it."""
        self._full_looks.reset()


async def read(connection: Connection, event_ids: Sequence[UUID]) -> list[Event]:
    """The events in the order of their ids; ids that retention removed are left out.

    An event that can't be read carries its `problem` instead of its JSON.
    """
    return await _read_safely(connection, event_ids, _READ)


async def _read_safely(connection: Connection, event_ids: Sequence[UUID], statement: str) -> list[Event]:
    try:
        return await _read(connection, event_ids, statement)
    except UNREADABLE as error:
        if len(event_ids) > 1:
            return [
                event for each in event_ids for event in await _read_safely(connection, [each], statement)
            ]
        log.error("event.unreadable", event_id=event_public_id(event_ids[0]), reason=str(error))
        problem = f"its row can't be read: {error}"
        return [
            structs.replace(each, problem=problem)
            for each in await _read(connection, event_ids, _READ_ESCAPED)
        ]


async def _read(connection: Connection, event_ids: Sequence[UUID], statement: str) -> list[Event]:
    return [event_of(row) for row in await _try(connection, statement, event_ids)]


async def _try(connection: Connection, statement: str, *arguments: object) -> list[asyncpg.Record]:
    """Run a statement whose failure leaves the connection usable, also where it is in a transaction."""
    if not connection.is_in_transaction():
        return await connection.fetch(statement, *arguments)
    async with connection.transaction():
        return await connection.fetch(statement, *arguments)


async def release(connection: Connection, owner: int, claim_ids: Iterable[int]) -> int:
    """Give back claims, for any daemon to take, in a transaction of the caller's; return how many events they
    held."""
    rows = await connection.fetch(
        "DELETE FROM postrider.claim WHERE id = ANY($2::bigint[]) AND owner = $1 RETURNING event_ids",
        owner,
        list(claim_ids),
    )
    event_ids = [event_id for row in rows for event_id in row["event_ids"]]
    await connection.execute(REQUEUE, event_ids)
    return len(event_ids)


async def claims(connection: Connection, owner: int) -> dict[int, int]:
    """The claims that the database thinks `owner` holds, each with the results recorded of it."""
    rows = await connection.fetch("SELECT id, recorded FROM postrider.claim WHERE owner = $1", owner)
    return {row["id"]: row["recorded"] for row in rows}


async def backlog(connection: Connection) -> Backlog:
    row = await connection.fetchrow(BACKLOG)
    assert row is not None
    return Backlog(row["events"], emitted_at(row["oldest"]))


@cache
def _claim_statement(limit: int, events: str) -> str:
    return _CLAIM.format(limit=limit, events=events)


def emitted_at(event_id: UUID | None) -> datetime | None:
    return None if event_id is None else datetime.fromtimestamp(emitted_at_s(event_id), UTC)


def event_of(row: asyncpg.Record) -> Event:
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


async def release_all(connection: Connection, owner: int) -> int:
    """Give back every claim of a daemon, in a transaction of the caller's; return how many events they held.

    Events of a claim that was not completed go back whole: what of them is recorded is known by its rows.
    """
    rows = await connection.fetch("DELETE FROM postrider.claim WHERE owner = $1 RETURNING event_ids", owner)
    event_ids = [event_id for row in rows for event_id in row["event_ids"]]
    await connection.execute(REQUEUE, event_ids)
    return len(event_ids)


async def add_test(connection: Connection, event: Event) -> None:
    """Write an event that was made up to try an endpoint; it is never fanned out."""
    await connection.execute(
        """INSERT INTO postrider.outbox (id, workspace_id, type, object_type, object_id, occurred_at,
                                         data, previous_attributes, actor, related, test)
           VALUES ($1, $2, $3, $4, $5, $6, $7::text::json, $8::text::json, $9::text::json,
                   $10::text::json, true)""",
        event.id,
        event.workspace_id,
        event.type,
        event.object_type,
        event.object_id,
        event.occurred_at,
        event.data,
        event.previous_attributes,
        event.actor,
        event.related,
    )

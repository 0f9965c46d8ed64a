"""Events: the queue of what is not yet fanned out (claim, release), and reading the outbox."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from postrider.domain.errors import UsageError
from postrider.domain.model import MAX_DATA_BYTES, Event
from postrider.store.database import Database

_EVENT_COLUMNS = f"""
  id, workspace_id, type, object_type, object_id, occurred_at, octet_length(data::text) AS data_bytes,
  CASE WHEN octet_length(data::text) <= {MAX_DATA_BYTES} THEN data END AS data,
  CASE WHEN octet_length(previous_attributes::text) <= {MAX_DATA_BYTES} THEN previous_attributes END
    AS previous_attributes, actor, related, test
"""

_CLAIM = """
WITH next AS (
  SELECT event_id, workspace_id FROM postrider.pending
  WHERE owner IS NULL ORDER BY event_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE postrider.pending AS p SET owner = $1 FROM next
WHERE p.event_id = next.event_id AND p.workspace_id = next.workspace_id
RETURNING p.event_id, p.redo
"""

_JSON_ARGUMENTS = frozenset({"previous_attributes", "actor", "related"})

_RELEASE = """
UPDATE postrider.pending SET owner = NULL, redo = true WHERE event_id = ANY($2::uuid[]) AND owner = $1
"""


@dataclass(frozen=True, slots=True)
class ClaimedEvent:
    event_id: UUID
    redo: bool
    """An earlier owner gave it up: some of its deliveries may be recorded already."""


@dataclass(frozen=True, slots=True)
class Backlog:
    events: int
    """Events not yet fanned out or not yet recorded."""
    oldest: datetime | None


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, owner: int, limit: int) -> list[ClaimedEvent]:
        """Take up to `limit` pending events for daemon `owner`, oldest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_CLAIM, owner, limit)
        return [ClaimedEvent(*row) for row in rows]

    async def read(self, event_ids: Sequence[UUID]) -> list[Event]:
        """The events in the order of their ids; ids that retention removed are left out."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"SELECT {_EVENT_COLUMNS} FROM postrider.outbox WHERE id = ANY($1::uuid[]) ORDER BY id",  # noqa: S608 (constant)
                event_ids,
            )
        return [_event(row) for row in rows]

    async def release(self, owner: int, event_ids: Sequence[UUID]) -> None:
        """Give back events unsent, for any daemon to take."""
        async with self._database.connection() as connection:
            await connection.execute(_RELEASE, owner, event_ids)

    async def owned(self, owner: int) -> set[UUID]:
        """What the database thinks that `owner` holds."""
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT event_id FROM postrider.pending WHERE owner = $1", owner)
        return {row["event_id"] for row in rows}

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
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""SELECT {_EVENT_COLUMNS} FROM postrider.outbox
                    WHERE ($1::text IS NULL OR workspace_id = $1) AND ($2::text IS NULL OR type = $2)
                      AND ($3::text IS NULL OR starts_with(type, $3))
                      AND ($4::uuid IS NULL OR id {beyond} $4)
                    ORDER BY id {direction} LIMIT $5""",  # noqa: S608 (constants)
                workspace_id,
                exact,
                prefix,
                after,
                limit,
            )
        return [_event(row) for row in rows]

    async def is_pending(self, event_id: UUID) -> bool:
        """Whether deliveries of an event are still to be recorded."""
        async with self._database.connection() as connection:
            pending: bool = await connection.fetchval(
                "SELECT EXISTS (SELECT FROM postrider.pending WHERE event_id = $1)", event_id
            )
        return pending

    async def backlog(self) -> Backlog:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                """SELECT (SELECT count(*) FROM (SELECT FROM postrider.pending LIMIT 1000000) AS p) AS events,
                          (SELECT min(o.occurred_at) FROM postrider.outbox AS o WHERE o.id =
                             (SELECT event_id FROM postrider.pending ORDER BY event_id LIMIT 1)) AS oldest"""
            )
        assert row is not None
        return Backlog(row["events"], row["oldest"])

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

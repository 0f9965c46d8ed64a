"""Events as people see them: found along an index as far as one leads, and what no index knows among a
bounded number of rows."""

from collections.abc import Sequence
from uuid import UUID

from msgspec import structs

from postrider.domain.audit import Scope
from postrider.domain.lists import EventFilter, FoundEvents
from postrider.domain.model import MAX_DATA_BYTES, Event, first_event_id
from postrider.store.database import Connection
from postrider.store.outbox import ALL_LARGE, UNREADABLE, event_of, events_query
from postrider.store.statement import BY_INDEX, LOOK_AT_MOST, Statement, in_order

_WANTED = events_query("id = wanted.id AND workspace_id = wanted.workspace_id LIMIT 1", most=MAX_DATA_BYTES)


async def search(
    connection: Connection,
    scope: Scope,
    chosen: EventFilter,
    *,
    after: UUID | None,
    newest_first: bool,
    limit: int,
    look_at_most: int = LOOK_AT_MOST,
) -> FoundEvents:
    """The events of a filter, in the order of their ids, from the one `after` which to go on."""
    await connection.execute(BY_INDEX)
    statement, parameters = search_statement(
        scope, chosen, after=after, newest_first=newest_first, limit=limit, look_at_most=look_at_most
    )
    rows = [event_of(row) for row in await connection.fetch(statement, *parameters)]
    if len(rows) == limit:
        return FoundEvents(rows, None)
    statement, parameters = reach_statement(
        scope, chosen, after=after, newest_first=newest_first, look_at_most=look_at_most
    )
    return FoundEvents(rows, await connection.fetchval(statement, *parameters))


def search_statement(
    scope: Scope,
    chosen: EventFilter,
    *,
    after: UUID | None,
    newest_first: bool,
    limit: int,
    look_at_most: int,
) -> tuple[str, list[object]]:
    made = Statement()
    looked = _looked_at(made, scope, chosen, after, newest_first=newest_first, look_at_most=look_at_most)
    direction, _ = in_order(newest_first)
    if chosen.type_pattern is not None:
        made.require(of_type(made, "type", chosen.type_pattern))
    if chosen.object_type is not None:
        made.require(f"object_type = {made.given(chosen.object_type, 'text')}")
    if chosen.object_id is not None:
        made.require(f"object_id = {made.given(chosen.object_id, 'text')}")
    return (
        f"""SELECT event.* FROM (
              SELECT id, workspace_id FROM ({looked}) AS looked WHERE {made.where}
              ORDER BY id {direction} LIMIT {made.given(limit, "bigint")}
            ) AS wanted CROSS JOIN LATERAL ({_WANTED}) AS event ORDER BY wanted.id {direction}""",  # noqa: S608
        made.parameters,
    )


def reach_statement(
    scope: Scope, chosen: EventFilter, *, after: UUID | None, newest_first: bool, look_at_most: int
) -> tuple[str, list[object]]:
    """The last event that a search looks at, where it may not look at all of them."""
    made = Statement()
    looked = _looked_at(made, scope, chosen, after, newest_first=newest_first, look_at_most=look_at_most)
    return f"SELECT id FROM ({looked}) AS looked OFFSET {look_at_most - 1}", made.parameters  # noqa: S608


def _looked_at(
    made: Statement,
    scope: Scope,
    chosen: EventFilter,
    after: UUID | None,
    *,
    newest_first: bool,
    look_at_most: int,
) -> str:
    """A query of what may have to be looked at, in its order."""
    direction, beyond = in_order(newest_first)
    inner = made.inner()
    inner.keep_to(scope)
    if chosen.workspace_id is not None:
        inner.require(f"workspace_id = {inner.given(chosen.workspace_id, 'text')}")
    if chosen.since is not None:
        inner.require(f"id >= {inner.given(first_event_id(chosen.since), 'uuid')}")
    if chosen.until is not None:
        inner.require(f"id < {inner.given(first_event_id(chosen.until), 'uuid')}")
    if after is not None:
        inner.require(f"id {beyond} {inner.given(after, 'uuid')}")
    return f"""
      SELECT id, workspace_id, type, object_type, object_id FROM postrider.outbox WHERE {inner.where}
      ORDER BY id {direction} LIMIT {look_at_most}"""  # noqa: S608 (numbers of parameters)


def of_type(made: Statement, column: str, pattern: str) -> str:
    """The condition that a type is `pattern`, which may be a prefix such as `deal.*`."""
    if pattern.endswith("*"):
        return f"starts_with({column}, {made.given(pattern[:-1], 'text')})"
    return f"{column} = {made.given(pattern, 'text')}"


async def read(connection: Connection, scope: Scope, event_ids: Sequence[UUID]) -> list[Event]:
    """The events in the order of their ids; ids that retention removed are left out, and so are those outside
    of the scope. One that can't be read carries its `problem` instead of its JSON."""
    found = []
    for event_id in sorted(event_ids):
        try:
            async with connection.transaction():
                found += await _read(connection, scope, event_id, most=MAX_DATA_BYTES)
        except UNREADABLE as error:
            events = await _read(connection, scope, event_id, most=0, known=ALL_LARGE, escaped=True)
            found += [structs.replace(each, problem=f"its row can't be read: {error}") for each in events]
    return found


async def _read(
    connection: Connection,
    scope: Scope,
    event_id: UUID,
    *,
    most: int,
    known: str = "NULL::integer",
    escaped: bool = False,
) -> list[Event]:
    made = Statement()
    made.require(f"id = {made.given(event_id, 'uuid')}")
    made.keep_to(scope)
    statement = events_query(made.where, most=most, known=known, escaped=escaped)
    return [event_of(row) for row in await connection.fetch(statement, *made.parameters)]

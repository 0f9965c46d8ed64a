"""Finds deliveries for people, however many there are: along an index as far as one leads, and what no index
knows among a bounded number of rows."""

from datetime import UTC
from enum import Enum

import asyncpg

from postrider.domain.audit import Scope
from postrider.domain.lists import DeliveryFilter, DeliveryRow, FoundDeliveries
from postrider.domain.model import DeliveryKey, DeliveryState, first_event_id
from postrider.store.database import Connection
from postrider.store.event_search import of_type
from postrider.store.partitions import name_of
from postrider.store.statement import BY_INDEX, LOOK_AT_MOST, Statement, in_order

_ENDS = (0, (1 << 63) - 1)
"""Beyond every endpoint's id, newest first and oldest first."""
_UNDER_WAY = {
    DeliveryState.WAITING: "endpoint_id, event_id",
    DeliveryState.SENDING: "owner",
    DeliveryState.RETRYING: "due",
}
"""Each has an index that holds nothing else, in this order, which is not that of a list."""


class Route(Enum):
    """What leads to the rows that a search has to look at."""

    EVENT = "the deliveries of one event"
    LANE = "what waits for one endpoint"
    UNDER_WAY = "all in one of the states that pass, where these are few: then they can be sorted"
    GIVEN_UP = (
        "what failed, or was cancelled, of one endpoint, one workspace or all, where every day has indexes"
    )
    FAILED = "all that failed"
    EVENTS = "the events of a workspace, and from each to its deliveries"
    ALL = "all deliveries"


SHOWN = """
SELECT d.event_id, d.endpoint_id, d.workspace_id, d.event_type, coalesce(d.test, false) AS test, d.state,
       d.attempts, d.due, d.updated_at, d.reason, d.http_status,
       (SELECT e.url FROM postrider.endpoint AS e
        WHERE e.id = d.endpoint_id AND e.workspace_id = d.workspace_id) AS url
FROM ({}) AS d
"""
EVENT_OF = """
  SELECT o.type AS event_type, o.test FROM postrider.outbox AS o
  WHERE o.id = d.event_id AND o.workspace_id = d.workspace_id OFFSET 0"""
STATUS_OF = """
  SELECT coalesce(d.status, (
    SELECT a.status FROM postrider.attempt AS a
    WHERE a.event_id = d.event_id AND a.endpoint_id = d.endpoint_id AND a.number = d.attempts
      AND a.workspace_id = d.workspace_id)) AS http_status OFFSET 0"""


# Days of before these indexes were made may be without, until retention removes them.
_UNINDEXED = """
SELECT EXISTS (
  SELECT FROM pg_inherits AS p JOIN pg_class AS c ON c.oid = p.inhrelid
  WHERE p.inhparent = 'postrider.delivery'::regclass
    AND (c.relname BETWEEN $1::text AND $2::text OR c.relname = 'delivery_default')
    AND NOT EXISTS (SELECT FROM pg_index AS x JOIN pg_inherits AS i ON i.inhrelid = x.indexrelid
                    WHERE x.indrelid = c.oid AND i.inhparent = 'postrider.delivery_given_up'::regclass))
"""


async def search(
    connection: Connection,
    scope: Scope,
    chosen: DeliveryFilter,
    *,
    after: DeliveryKey | None,
    newest_first: bool,
    limit: int,
    look_at_most: int = LOOK_AT_MOST,
) -> FoundDeliveries:
    """The deliveries of a filter, by their events, from the one `after` which to go on."""
    await connection.execute(BY_INDEX)
    route = route_of(scope, chosen)
    if route is Route.UNDER_WAY and not await _are_few(connection, chosen, look_at_most):
        route = _beside_many(scope, chosen)
    if route is Route.GIVEN_UP and await _lacks_index(connection, chosen):
        route = _without_index(scope, chosen)
    statement, parameters = search_statement(
        scope,
        chosen,
        route,
        after=after,
        newest_first=newest_first,
        limit=limit,
        look_at_most=look_at_most,
    )
    rows = [delivery_row(row) for row in await connection.fetch(statement, *parameters)]
    if len(rows) == limit or route is Route.UNDER_WAY:
        return FoundDeliveries(rows, None)
    statement, parameters = reach_statement(
        scope, chosen, route, after=after, newest_first=newest_first, look_at_most=look_at_most
    )
    end = await connection.fetchrow(statement, *parameters)
    return FoundDeliveries(rows, None if end is None else (end["event_id"], end["endpoint_id"]))


async def _are_few(connection: Connection, chosen: DeliveryFilter, look_at_most: int) -> bool:
    count: int = await connection.fetchval(count_statement(chosen, look_at_most))
    return count <= look_at_most


async def _lacks_index(connection: Connection, chosen: DeliveryFilter) -> bool:
    """Whether a day that may have to be looked at is without the indexes of what was given up."""
    first = "delivery_0" if chosen.since is None else name_of("delivery", chosen.since.astimezone(UTC).date())
    last = "delivery_9" if chosen.until is None else name_of("delivery", chosen.until.astimezone(UTC).date())
    lacks: bool = await connection.fetchval(_UNINDEXED, first, last)
    return lacks


def route_of(scope: Scope, chosen: DeliveryFilter) -> Route:
    """The best route, where deliveries under way are few, and all days have all indexes."""
    if chosen.event_id is not None:
        return Route.EVENT
    if chosen.state is DeliveryState.WAITING and chosen.endpoint_id is not None:
        return Route.LANE
    if chosen.state in _UNDER_WAY:
        return Route.UNDER_WAY
    if chosen.state in (DeliveryState.FAILED, DeliveryState.CANCELLED):
        return Route.GIVEN_UP
    return _beside_many(scope, chosen)


def _without_index(scope: Scope, chosen: DeliveryFilter) -> Route:
    """The route to what was given up where not all days have its indexes: each has one of all that failed."""
    return Route.FAILED if chosen.state is DeliveryState.FAILED else _beside_many(scope, chosen)


def _beside_many(scope: Scope, chosen: DeliveryFilter) -> Route:
    """The route where no index knows the state."""
    of_one_workspace = (scope.workspace_id, chosen.workspace_id, chosen.endpoint_id) != (None, None, None)
    return Route.EVENTS if of_one_workspace else Route.ALL


def search_statement(
    scope: Scope,
    chosen: DeliveryFilter,
    route: Route,
    *,
    after: DeliveryKey | None,
    newest_first: bool,
    limit: int,
    look_at_most: int,
) -> tuple[str, list[object]]:
    made = Statement()
    looked = _looked_at(
        made.inner(), scope, chosen, route, after, newest_first=newest_first, look_at_most=look_at_most
    )
    if route is not Route.EVENTS:
        looked = f"""
          SELECT d.*, o.event_type, o.test FROM ({looked}) AS d
          LEFT JOIN LATERAL ({EVENT_OF}) AS o ON true"""  # noqa: S608 (numbers of parameters)
    # What a route has seen to already is said again: nothing else can come.
    made.require("d.state IS NOT NULL" if chosen.state is None else f"d.state = '{chosen.state}'")
    made.keep_to(scope, "d.workspace_id")
    if chosen.workspace_id is not None:
        made.require(f"d.workspace_id = {made.given(chosen.workspace_id, 'text')}")
    if chosen.endpoint_id is not None:
        made.require(f"d.endpoint_id = {made.given(chosen.endpoint_id, 'bigint')}")
    if chosen.type_pattern is not None:
        made.require(of_type(made, "d.event_type", chosen.type_pattern))
    if not chosen.tests:
        made.require("d.test IS NOT TRUE")
    if chosen.http_status is not None:
        first, last = chosen.http_status[0], chosen.http_status[-1]
        made.require(f"s.http_status BETWEEN {made.given(first, 'int')} AND {made.given(last, 'int')}")
    direction, _ = in_order(newest_first)
    inner = f"""
      SELECT d.*, s.http_status FROM ({looked}) AS d CROSS JOIN LATERAL ({STATUS_OF}) AS s
      WHERE {made.where} ORDER BY d.event_id {direction}, d.endpoint_id {direction}
      LIMIT {made.given(limit, "bigint")}"""  # noqa: S608 (numbers of parameters)
    return f"{SHOWN.format(inner)} ORDER BY event_id {direction}, endpoint_id {direction}", made.parameters


def reach_statement(
    scope: Scope,
    chosen: DeliveryFilter,
    route: Route,
    *,
    after: DeliveryKey | None,
    newest_first: bool,
    look_at_most: int,
) -> tuple[str, list[object]]:
    """The last row that a search looks at, where it may not look at all of them."""
    made = Statement()
    looked = _looked_at(
        made, scope, chosen, route, after, newest_first=newest_first, look_at_most=look_at_most
    )
    end = _ENDS[0 if newest_first else 1]
    return (
        f"""SELECT event_id, coalesce(endpoint_id, {end}) AS endpoint_id
            FROM ({looked}) AS looked OFFSET {look_at_most - 1}""",  # noqa: S608 (numbers)
        made.parameters,
    )


def count_statement(chosen: DeliveryFilter, look_at_most: int) -> str:
    """How many deliveries are in a state that passes; one more than may be looked at says enough."""
    return f"SELECT count(*) FROM ({_under_way(chosen.state, look_at_most + 1)}) AS d"  # noqa: S608 (constants)


def _looked_at(
    made: Statement,
    scope: Scope,
    chosen: DeliveryFilter,
    route: Route,
    after: DeliveryKey | None,
    *,
    newest_first: bool,
    look_at_most: int,
) -> str:
    """A query of what may have to be looked at, in its order."""
    if route is Route.EVENTS:
        return _events(made, scope, chosen, after, newest_first=newest_first, look_at_most=look_at_most)
    source = "postrider.delivery"
    if route is Route.UNDER_WAY:
        source = f"({_under_way(chosen.state, look_at_most)}) AS few"
    _keep_to_time(made, chosen, "event_id")
    if route in (Route.LANE, Route.GIVEN_UP, Route.FAILED):
        made.require(f"state = '{chosen.state}'")  # no parameter: the plan has to know which index it is
    if route is Route.EVENT:
        made.require(f"event_id = {made.given(chosen.event_id, 'uuid')}")
    if route not in (Route.FAILED, Route.ALL):
        if chosen.endpoint_id is not None:
            made.require(f"endpoint_id = ({_endpoint(made, scope, chosen, 'id')})")
        _keep_to_workspace(made, scope, chosen)
    direction, beyond = in_order(newest_first)
    if after is not None:
        made.require(f"event_id {beyond}= {made.given(after[0], 'uuid')}")  # leaves out partitions
        made.require(f"(event_id, endpoint_id) {beyond} {_key(made, after)}")
    return f"""SELECT * FROM {source} WHERE {made.where}
               ORDER BY event_id {direction}, endpoint_id {direction} LIMIT {look_at_most}"""  # noqa: S608


def _under_way(state: DeliveryState | None, most: int) -> str:
    """All deliveries in a state that passes. Their order keeps the plan to the index, whatever the statistics
    say of how many there are."""
    assert state is not None
    return f"""SELECT * FROM postrider.delivery WHERE state = '{state}'
               ORDER BY {_UNDER_WAY[state]} LIMIT {most}"""  # noqa: S608 (constants)


def _events(
    made: Statement,
    scope: Scope,
    chosen: DeliveryFilter,
    after: DeliveryKey | None,
    *,
    newest_first: bool,
    look_at_most: int,
) -> str:
    """The events of a workspace, each with its deliveries, or once without one: only there an index knows of
    workspaces. The join keeps the order of events, and the end is found without a look at the rest."""
    direction, beyond = in_order(newest_first)
    _keep_to_time(made, chosen, "id")
    _keep_to_workspace(made, scope, chosen)
    of_event = made.inner()
    of_event.require("d.event_id = o.id AND d.workspace_id = o.workspace_id")
    if chosen.endpoint_id is not None:
        of_event.require(f"d.endpoint_id = {made.given(chosen.endpoint_id, 'bigint')}")
    if after is not None:
        over = after[1] == _ENDS[0 if newest_first else 1]
        made.require(f"id {beyond}{'' if over else '='} {made.given(after[0], 'uuid')}")
        of_event.require(f"(o.id, d.endpoint_id) {beyond} {_key(made, after)}")
    return f"""
      SELECT o.id AS event_id, o.type AS event_type, o.test, d.endpoint_id, d.workspace_id, d.state,
             d.attempts, d.due, d.updated_at, d.reason, d.status
      FROM (SELECT id, workspace_id, type, test FROM postrider.outbox WHERE {made.where}
            ORDER BY id {direction} LIMIT {look_at_most}) AS o
      LEFT JOIN LATERAL (SELECT * FROM postrider.delivery AS d WHERE {of_event.where} OFFSET 0) AS d ON true
      ORDER BY o.id {direction}, d.endpoint_id {direction} LIMIT {look_at_most}"""  # noqa: S608 (numbers)


def _keep_to_workspace(made: Statement, scope: Scope, chosen: DeliveryFilter) -> None:
    if chosen.endpoint_id is not None:
        made.require(f"workspace_id = ({_endpoint(made, scope, chosen, 'workspace_id')})")
        return
    made.keep_to(scope)
    if chosen.workspace_id is not None:
        made.require(f"workspace_id = {made.given(chosen.workspace_id, 'text')}")


def _endpoint(made: Statement, scope: Scope, chosen: DeliveryFilter, column: str) -> str:
    """A column of the endpoint, which is NULL where that lies outside: then nothing is looked at."""
    of_it = made.inner()
    of_it.require(f"e.id = {made.given(chosen.endpoint_id, 'bigint')}")
    of_it.keep_to(scope, "e.workspace_id")
    if chosen.workspace_id is not None:
        of_it.require(f"e.workspace_id = {made.given(chosen.workspace_id, 'text')}")
    return f"SELECT e.{column} FROM postrider.endpoint AS e WHERE {of_it.where}"  # noqa: S608 (parameters)


def _keep_to_time(made: Statement, chosen: DeliveryFilter, event_id: str) -> None:
    if chosen.since is not None:
        made.require(f"{event_id} >= {made.given(first_event_id(chosen.since), 'uuid')}")
    if chosen.until is not None:
        made.require(f"{event_id} < {made.given(first_event_id(chosen.until), 'uuid')}")


def _key(made: Statement, key: DeliveryKey) -> str:
    return f"({made.given(key[0], 'uuid')}, {made.given(key[1], 'bigint')})"


def delivery_row(row: asyncpg.Record) -> DeliveryRow:
    return DeliveryRow(
        event_id=row["event_id"],
        endpoint_id=row["endpoint_id"],
        workspace_id=row["workspace_id"],
        event_type=row["event_type"],
        test=row["test"],
        state=DeliveryState(row["state"]),
        attempts=row["attempts"],
        due=row["due"],
        updated_at=row["updated_at"],
        reason=row["reason"],
        http_status=row["http_status"],
        url=row["url"],
    )

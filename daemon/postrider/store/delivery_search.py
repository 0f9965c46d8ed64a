"""Finds deliveries for people, however many there are: along an index as far as one leads, and what no index
knows among a bounded number of rows."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from postrider.domain.model import DeliveryState, first_event_id
from postrider.store.database import Database
from postrider.store.deliveries import DeliveryKey
from postrider.store.outbox import in_order

LOOK_AT_MOST = 100_000
"""Rows that one search looks at; it tells where it ended."""
_ENDS = (0, (1 << 63) - 1)
"""Beyond every endpoint's id, newest first and oldest first."""
_INDEXED_STATES = frozenset({
    DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.RETRYING, DeliveryState.FAILED
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFilter:
    endpoint_id: int | None = None
    event_id: UUID | None = None
    workspace_id: str | None = None
    state: DeliveryState | None = None
    since: datetime | None = None
    """Of events that were emitted then or later."""
    until: datetime | None = None
    """Of events that were emitted before."""
    type_pattern: str | None = None
    """An event type, `deal.*` or `*`."""
    http_status: range | None = None
    """Of the last attempt's answer."""
    tests: bool = True
    """Whether those of tests are wanted too."""


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A delivery as people see it."""

    event_id: UUID
    endpoint_id: int
    workspace_id: str
    event_type: str | None
    """None where retention removed the event."""
    test: bool
    state: DeliveryState
    attempts: int
    due: datetime | None
    updated_at: datetime
    reason: str | None
    http_status: int | None
    """Of the last attempt's answer."""
    url: str | None
    """Of the endpoint, as it is now."""


@dataclass(frozen=True, slots=True)
class Found:
    rows: list[DeliveryRow]
    looked_to: DeliveryKey | None
    """The last row that was looked at, where the search ended before it had looked at all."""


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


class _Statement:
    """Conditions and the parameters in them."""

    def __init__(self) -> None:
        self.parameters: list[object] = []

    def given(self, value: object, kind: str) -> str:
        self.parameters.append(value)
        return f"${len(self.parameters)}::{kind}"


async def search(
    database: Database,
    chosen: DeliveryFilter,
    *,
    after: DeliveryKey | None,
    newest_first: bool,
    limit: int,
    look_at_most: int = LOOK_AT_MOST,
) -> Found:
    """The deliveries of a filter, by their events, from the one `after` which to go on."""
    statement, parameters = search_statement(
        chosen, after=after, newest_first=newest_first, limit=limit, look_at_most=look_at_most
    )
    async with database.connection() as connection:
        rows = [delivery_row(row) for row in await connection.fetch(statement, *parameters)]
        if len(rows) == limit:
            return Found(rows, None)
        statement, parameters = reach_statement(
            chosen, after=after, newest_first=newest_first, look_at_most=look_at_most
        )
        end = await connection.fetchrow(statement, *parameters)
    return Found(rows, None if end is None else (end["event_id"], end["endpoint_id"]))


def search_statement(
    chosen: DeliveryFilter, *, after: DeliveryKey | None, newest_first: bool, limit: int, look_at_most: int
) -> tuple[str, list[object]]:
    made = _Statement()
    looked = _looked_at(chosen, made, after, newest_first=newest_first, look_at_most=look_at_most)
    direction, beyond = in_order(newest_first)
    conditions = ["true"]
    if chosen.type_pattern is not None:
        pattern = chosen.type_pattern
        conditions.append(
            f"starts_with(event_type, {made.given(pattern[:-1], 'text')})"
            if pattern.endswith("*")
            else f"event_type = {made.given(pattern, 'text')}"
        )
    if chosen.http_status is not None:
        first, last = chosen.http_status[0], chosen.http_status[-1]
        conditions.append(f"http_status BETWEEN {made.given(first, 'int')} AND {made.given(last, 'int')}")
    if not chosen.tests:
        conditions.append("o.test IS NOT TRUE")
    if chosen.state is not None:
        conditions.append(f"d.state = {made.given(chosen.state.value, 'text')}")
    if chosen.endpoint_id is not None:
        conditions.append(f"d.endpoint_id = {made.given(chosen.endpoint_id, 'bigint')}")
    if chosen.workspace_id is not None:
        conditions.append(f"d.workspace_id = {made.given(chosen.workspace_id, 'text')}")
    if _by_events(chosen):
        # The rows come in this order; the join keeps it, and the end is found without a look at the rest.
        after_key = f"(o.event_id, d.endpoint_id) {beyond} {_key(made, after)}" if after else "true"
        source = f"""({looked}) AS o CROSS JOIN LATERAL (
            SELECT * FROM postrider.delivery AS d
            WHERE d.event_id = o.event_id AND d.workspace_id = o.workspace_id AND {after_key} OFFSET 0
          ) AS d"""  # noqa: S608 (numbers of parameters)
        order = f"o.event_id {direction}, d.endpoint_id {direction}"
    else:
        source = f"({looked}) AS d LEFT JOIN LATERAL ({EVENT_OF}) AS o ON true"
        order = f"d.event_id {direction}, d.endpoint_id {direction}"
    inner = f"""
      SELECT d.*, o.event_type, o.test, s.http_status FROM {source} CROSS JOIN LATERAL ({STATUS_OF}) AS s
      WHERE {" AND ".join(conditions)} ORDER BY {order} LIMIT {made.given(limit, "bigint")}"""  # noqa: S608
    return f"{SHOWN.format(inner)} ORDER BY event_id {direction}, endpoint_id {direction}", made.parameters


def reach_statement(
    chosen: DeliveryFilter, *, after: DeliveryKey | None, newest_first: bool, look_at_most: int
) -> tuple[str, list[object]]:
    """The last row that a search looks at, where it may not look at all of them."""
    made = _Statement()
    looked = _looked_at(chosen, made, after, newest_first=newest_first, look_at_most=look_at_most)
    endpoint = str(_ENDS[0 if newest_first else 1]) if _by_events(chosen) else "endpoint_id"
    return (
        f"SELECT event_id, {endpoint} AS endpoint_id FROM ({looked}) AS looked OFFSET {look_at_most - 1}",  # noqa: S608 (numbers and constants)
        made.parameters,
    )


def _by_events(chosen: DeliveryFilter) -> bool:
    """Whether the outbox leads to the deliveries: only there an index knows of workspaces."""
    return (
        chosen.event_id is None
        and chosen.state not in _INDEXED_STATES
        and (chosen.workspace_id, chosen.endpoint_id) != (None, None)
    )


def _looked_at(
    chosen: DeliveryFilter,
    made: _Statement,
    after: DeliveryKey | None,
    *,
    newest_first: bool,
    look_at_most: int,
) -> str:
    """A query of what may have to be looked at, in its order: events, or deliveries."""
    direction, beyond = in_order(newest_first)
    by_events = _by_events(chosen)
    event_id = "id" if by_events else "event_id"
    conditions = ["true"]
    if chosen.since is not None:
        conditions.append(f"{event_id} >= {made.given(first_event_id(chosen.since), 'uuid')}")
    if chosen.until is not None:
        conditions.append(f"{event_id} < {made.given(first_event_id(chosen.until), 'uuid')}")
    if by_events:
        if chosen.workspace_id is not None:
            conditions.append(f"workspace_id = {made.given(chosen.workspace_id, 'text')}")
        else:
            endpoint = made.given(chosen.endpoint_id, "bigint")
            conditions.append(
                f"workspace_id = (SELECT e.workspace_id FROM postrider.endpoint AS e WHERE e.id = {endpoint})"  # noqa: S608 (a parameter)
            )
        if after is not None:
            conditions.append(f"id {beyond}= {made.given(after[0], 'uuid')}")
        return f"""SELECT id AS event_id, workspace_id, type AS event_type, test FROM postrider.outbox
                   WHERE {" AND ".join(conditions)} ORDER BY id {direction} LIMIT {look_at_most}"""  # noqa: S608
    if chosen.event_id is not None:
        conditions.append(f"event_id = {made.given(chosen.event_id, 'uuid')}")
    if chosen.state in _INDEXED_STATES:
        conditions.append(f"state = '{chosen.state}'")  # no parameter: the plan has to know which index it is
        if chosen.endpoint_id is not None and chosen.state is DeliveryState.WAITING:
            conditions.append(f"endpoint_id = {made.given(chosen.endpoint_id, 'bigint')}")
    if after is not None:
        conditions.append(f"(event_id, endpoint_id) {beyond} {_key(made, after)}")
    return f"""SELECT * FROM postrider.delivery WHERE {" AND ".join(conditions)}
               ORDER BY event_id {direction}, endpoint_id {direction} LIMIT {look_at_most}"""  # noqa: S608


def _key(made: _Statement, key: DeliveryKey) -> str:
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

"""Events that endpoints missed while they were disabled: when that was, and which events these are.

No row says that an event was missed. It was if it lies in a period in which the endpoint was disabled,
matches its patterns, and has no delivery for it though it is not on its way any more. So what was fanned out
by the state before a change, or after it, is not counted, and nothing falls between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from postrider.domain.matching import matching_patterns
from postrider.domain.model import Event
from postrider.store.database import Connection


@dataclass(frozen=True, slots=True)
class Period:
    """The events that an endpoint may have missed in a time in which it was disabled."""

    first_event: UUID
    last_event: UUID | None
    """Only events with smaller ids. None: it still is disabled."""


@dataclass(frozen=True, slots=True)
class Missed:
    """Why an endpoint did not get an event."""

    endpoint_id: int
    since: datetime
    until: datetime | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Fates:
    """What became of some events at an endpoint; all others were not made deliveries for it."""

    recorded: frozenset[UUID]
    """They have a delivery."""
    queued: frozenset[UUID]
    """They are still to be fanned out, or were a moment ago."""
    claimed: frozenset[UUID]
    """They may have been fanned out to it."""


# An event under way that is queued or claimed may become a delivery yet.
_OF_EVENT = """
SELECT DISTINCT ON (p.endpoint_id) p.endpoint_id, p.since, p.until, p.reason
FROM postrider.disabled_period AS p
JOIN postrider.endpoint AS e ON e.id = p.endpoint_id AND e.workspace_id = p.workspace_id
WHERE p.workspace_id = $1 AND p.first_event <= $2 AND (p.last_event IS NULL OR p.last_event > $2)
  AND e.state <> 'deleted' AND e.patterns && $3::text[] AND NOT e.exclusions && $3::text[]
  AND NOT EXISTS (SELECT FROM postrider.delivery AS d
                  WHERE d.event_id = $2 AND d.endpoint_id = e.id AND d.workspace_id = e.workspace_id)
  AND NOT EXISTS (SELECT FROM postrider.pending AS q WHERE q.event_id = $2)
  AND NOT EXISTS (SELECT FROM postrider.claim AS c WHERE $2 = ANY (c.event_ids))
ORDER BY p.endpoint_id, p.since
"""

_EVENTS = """
SELECT id, type FROM postrider.outbox
WHERE workspace_id = $1 AND id >= $2 AND id < $3 AND NOT test ORDER BY id LIMIT $4
"""

_FATES = """
SELECT id,
  EXISTS (SELECT FROM postrider.delivery AS d
          WHERE d.event_id = id AND d.endpoint_id = $1 AND d.workspace_id = $3) AS recorded,
  EXISTS (SELECT FROM postrider.pending AS q WHERE q.event_id = id) AS queued,
  id IN (SELECT unnest(event_ids) FROM postrider.claim) AS claimed
FROM unnest($2::uuid[]) AS given (id)
"""


async def periods(connection: Connection, workspace_id: str, endpoint_id: int) -> list[Period]:
    """When an endpoint was disabled, as far back as events are kept; the first one first."""
    rows = await connection.fetch(
        """SELECT first_event, last_event FROM postrider.disabled_period
           WHERE workspace_id = $1 AND endpoint_id = $2 ORDER BY since""",
        workspace_id,
        endpoint_id,
    )
    return [Period(*row) for row in rows]


async def of_event(connection: Connection, event: Event) -> list[Missed]:
    """The endpoints that missed an event, in the order of their ids; none while it is on its way."""
    rows = await connection.fetch(
        _OF_EVENT, event.workspace_id, event.id, sorted(matching_patterns(event.type))
    )
    return [] if event.test else [Missed(*row) for row in rows]


async def events(
    connection: Connection, workspace_id: str, first: UUID, beyond: UUID, limit: int
) -> list[tuple[UUID, str]]:
    """Ids and types of some events of a workspace in the order of their ids, from `first` on, without
    `beyond`."""
    rows = await connection.fetch(_EVENTS, workspace_id, first, beyond, limit)
    return [(row["id"], row["type"]) for row in rows]


async def fates(
    connection: Connection, workspace_id: str, endpoint_id: int, event_ids: Sequence[UUID]
) -> Fates:
    rows = await connection.fetch(_FATES, endpoint_id, event_ids, workspace_id)
    return Fates(
        frozenset(row["id"] for row in rows if row["recorded"]),
        frozenset(row["id"] for row in rows if row["queued"]),
        frozenset(row["id"] for row in rows if row["claimed"]),
    )

"""The last delivery of each endpoint, as people see it in a list of endpoints."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from postrider.domain.model import DeliveryState
from postrider.store.database import Connection, Database

# What another daemon wrote of a later attempt stands.
_NOTE = """
INSERT INTO postrider.last_delivery AS l (endpoint_id, workspace_id, event_id, state, reason, at)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::timestamptz[])
ON CONFLICT (endpoint_id, workspace_id) DO UPDATE
SET event_id = excluded.event_id, state = excluded.state, reason = excluded.reason, at = excluded.at
WHERE l.at <= excluded.at
"""


class LastDelivery(msgspec.Struct, frozen=True):
    endpoint_id: int
    workspace_id: str
    event_id: UUID
    state: DeliveryState
    reason: str | None
    at: datetime
    """When its last attempt began."""


class LastDeliveries:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(self, deliveries: Sequence[LastDelivery]) -> None:
        """Write down the last deliveries of some endpoints, one of each."""
        async with self._database.connection() as connection:
            await note(connection, deliveries)


async def note(connection: Connection, deliveries: Sequence[LastDelivery]) -> None:
    """The same, in a transaction of the caller's."""
    rows = sorted(deliveries, key=lambda each: each.endpoint_id)  # two who write wait in one order
    await connection.execute(
        _NOTE,
        [row.endpoint_id for row in rows],
        [row.workspace_id for row in rows],
        [row.event_id for row in rows],
        [row.state.value for row in rows],
        [row.reason for row in rows],
        [row.at for row in rows],
    )

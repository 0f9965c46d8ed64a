"""The last delivery of each endpoint, as people see it in a list of endpoints."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from postrider.domain.model import DeliveryState
from postrider.store.database import Connection

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


async def note(connection: Connection, deliveries: Sequence[LastDelivery]) -> None:
    """Write down the last deliveries of some endpoints, one of each."""
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

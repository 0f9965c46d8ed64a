"""Endpoints as their attempts show them: which only fail, since when, and that one is disabled for it."""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from postrider.domain.model import endpoint_public_id
from postrider.domain.policy import AttemptNote
from postrider.store.database import Connection

_DISABLE = """
WITH disabled AS (
  UPDATE postrider.endpoint SET state = 'disabled', disabled_reason = $2, updated_at = $3
  WHERE id = $1 AND workspace_id = $6 AND state = 'active'
    AND failing_since IS NOT DISTINCT FROM coalesce($5, failing_since)
  RETURNING id, workspace_id, url
)
SELECT postrider.emit('endpoint.disabled', json_build_object('id', $4::text, 'url', url, 'reason', $2::text),
                      workspace_id => workspace_id, object_type => 'endpoint', object_id => $4::text)
FROM disabled
"""

# An attempt that failed counts from the first one after the last success, whoever saw that; what another
# daemon noted after our success stands.
_NOTE_ATTEMPTS = """
UPDATE postrider.endpoint AS e
SET failing_since = least(
  CASE WHEN note.succeeded_at IS NULL OR e.failing_since > note.succeeded_at THEN e.failing_since END,
  note.failing_since)
FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::timestamptz[])
  AS note (id, workspace_id, succeeded_at, failing_since)
WHERE e.id = note.id AND e.workspace_id = note.workspace_id
"""


class Failing(NamedTuple):
    """An endpoint whose every attempt failed."""

    workspace_id: str
    since: datetime
    dialect: str


async def disable(
    connection: Connection,
    workspace_id: str,
    endpoint_id: int,
    reason: str,
    now: datetime,
    *,
    failing_since: datetime | None = None,
) -> bool:
    """Disable an active endpoint, and announce it as an event `endpoint.disabled` of its workspace.

    Where `failing_since` is given, only if it still fails since then.
    """
    event: str | None = await connection.fetchval(
        _DISABLE, endpoint_id, reason, now, endpoint_public_id(endpoint_id), failing_since, workspace_id
    )
    return event is not None


async def failing(connection: Connection) -> dict[int, Failing]:
    """Endpoints whose every attempt failed, and since when."""
    rows = await connection.fetch(
        """SELECT id, workspace_id, failing_since, dialect FROM postrider.endpoint
           WHERE failing_since IS NOT NULL AND state <> 'deleted' ORDER BY id"""
    )
    return {row["id"]: Failing(row["workspace_id"], row["failing_since"], row["dialect"]) for row in rows}


async def note_attempts(connection: Connection, notes: Mapping[int, AttemptNote]) -> None:
    """Take in what became of the last attempts of some endpoints. It has to be in a transaction."""
    ids = sorted(notes)  # in one order, so that two daemons can't wait for each other
    workspaces = [notes[each].workspace_id for each in ids]
    # Memory forgets what is noted here: a crash may not undo it.
    await connection.execute("SET LOCAL synchronous_commit = on")
    await connection.execute(
        """SELECT FROM postrider.endpoint WHERE id = ANY($1::bigint[]) AND workspace_id = ANY($2::text[])
           ORDER BY id FOR UPDATE""",
        ids,
        sorted(set(workspaces)),
    )
    await connection.execute(
        _NOTE_ATTEMPTS,
        ids,
        workspaces,
        [notes[each].succeeded_at for each in ids],
        [notes[each].failing_since for each in ids],
    )

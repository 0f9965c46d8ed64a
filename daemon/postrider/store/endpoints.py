"""Endpoints: what people change of them, their secrets, and how they fare."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.model import Endpoint, EndpointState, endpoint_public_id
from postrider.domain.policy import AttemptNote
from postrider.domain.sealing import Sealer
from postrider.store.database import Connection, Database
from postrider.store.endpoint_rows import LISTED, EndpointRow, read_row, seal_headers
from postrider.store.endpoint_sealing import demand_fitting_key

_DISABLE = """
WITH disabled AS (
  UPDATE postrider.endpoint SET state = 'disabled', disabled_reason = $2, updated_at = $3
  WHERE id = $1 AND state = 'active' AND ($5::timestamptz IS NULL OR failing_since = $5)
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
FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) AS note (id, succeeded_at, failing_since)
WHERE e.id = note.id
"""


class Failing(NamedTuple):
    """An endpoint whose every attempt failed."""

    since: datetime
    dialect: str


class Endpoints:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self.sealer = sealer
        """A reload of the configuration may exchange it."""

    async def list_endpoints(
        self, *, workspace_id: str | None = None, include_deleted: bool = False
    ) -> list[EndpointRow]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""{LISTED} WHERE ($1::text IS NULL OR e.workspace_id = $1) AND ($2 OR e.state <> 'deleted')
                    ORDER BY e.workspace_id, e.created_at, e.id""",
                workspace_id,
                include_deleted,
            )
        return [read_row(row, self.sealer) for row in rows]

    async def described(self, beginning: str) -> list[tuple[int, str]]:
        """Endpoints whose description begins like that, with it; deleted ones are left out."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT id, description FROM postrider.endpoint
                   WHERE state <> 'deleted' AND starts_with(description, $1) ORDER BY id""",
                beginning,
            )
        return [(row["id"], row["description"]) for row in rows]

    async def get(self, endpoint_id: int) -> EndpointRow:
        """Raises UsageError if there is no such endpoint."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(f"{LISTED} WHERE e.id = $1", endpoint_id)
        if row is None:
            raise UsageError(
                f"there is no endpoint {endpoint_public_id(endpoint_id)}",
                "`postrider endpoint list` shows those there are.",
            )
        return read_row(row, self.sealer)

    async def add(self, endpoint: Endpoint, secrets: Sequence[str], now: datetime) -> None:
        """Raises PostriderError where the key is another than the daemon's seems to be."""
        headers, sealed_headers = seal_headers(endpoint.headers, endpoint.id, self.sealer)
        async with self._database.transaction() as connection:
            await demand_fitting_key(connection, self.sealer)
            await connection.execute(
                """INSERT INTO postrider.endpoint
                     (id, workspace_id, url, description, patterns, exclusions, dialect, concurrency,
                      rate, headers, sealed_headers, state, created_at, updated_at)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::json, $11, $12, $13, $13)""",
                endpoint.id,
                endpoint.workspace_id,
                endpoint.url,
                endpoint.description,
                endpoint.patterns,
                endpoint.exclusions,
                endpoint.dialect,
                endpoint.concurrency,
                endpoint.rate,
                headers,
                sealed_headers,
                endpoint.state.value,
                now,
            )
            await self._add_secrets(connection, endpoint, secrets, now)

    async def update(
        self,
        endpoint_id: int,
        now: datetime,
        *,
        url: str | None = None,
        description: str | None = None,
        patterns: Sequence[str] | None = None,
        exclusions: Sequence[str] | None = None,
        dialect: str | None = None,
        concurrency: int | None = None,
        rate: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Change what is not None; 0 lifts the bound that `concurrency`, or `rate` per second, was. Raises
        PostriderError where there are headers, and the key is another than the daemon's seems to be."""
        open_headers, sealed_headers = (
            seal_headers(headers, endpoint_id, self.sealer) if headers is not None else (None, None)
        )
        async with self._database.connection() as connection:
            if headers:
                await demand_fitting_key(connection, self.sealer)
            await connection.execute(
                """UPDATE postrider.endpoint
                   SET url = coalesce($2, url), description = coalesce($3, description),
                     patterns = coalesce($4, patterns), exclusions = coalesce($5, exclusions),
                     dialect = coalesce($6, dialect),
                     concurrency = nullif(coalesce($7, concurrency), 0), rate = nullif(coalesce($8, rate), 0),
                     headers = coalesce($9::text::json, headers),
                     sealed_headers = CASE WHEN $9::text IS NULL THEN sealed_headers ELSE $10::bytea END,
                     updated_at = $11
                   WHERE id = $1 AND state <> 'deleted'""",
                endpoint_id,
                url,
                description,
                patterns,
                exclusions,
                dialect,
                concurrency,
                rate,
                open_headers,
                sealed_headers,
                now,
            )

    async def set_state(self, endpoint_id: int, state: EndpointState, now: datetime) -> bool:
        """Pause or resume; False if the endpoint was in that state, is deleted or not verified."""
        async with self._database.connection() as connection:
            changed: int | None = await connection.fetchval(
                """UPDATE postrider.endpoint SET state = $2, disabled_reason = NULL, failing_since = NULL,
                     updated_at = $3
                   WHERE id = $1 AND state NOT IN ('deleted', 'unverified', $2) RETURNING id""",
                endpoint_id,
                state.value,
                now,
            )
        return changed is not None

    async def activate(self, endpoint_id: int, now: datetime) -> None:
        """Let an endpoint that answered its handshake take part."""
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE postrider.endpoint SET state = 'active', updated_at = $2 "
                "WHERE id = $1 AND state = 'unverified'",
                endpoint_id,
                now,
            )

    async def delete(self, endpoint_id: int, now: datetime) -> int:
        """Delete an endpoint, its secrets and headers, and cancel what waits; return how many that were."""
        async with self._database.transaction() as connection:
            await connection.execute(
                """UPDATE postrider.endpoint
                   SET state = 'deleted', headers = '{}', sealed_headers = NULL, updated_at = $2
                   WHERE id = $1""",
                endpoint_id,
                now,
            )
            await connection.execute(
                "DELETE FROM postrider.endpoint_secret WHERE endpoint_id = $1", endpoint_id
            )
        return await self.cancel_deleted(endpoint_id, now)

    async def cancel_deleted(self, endpoint_id: int, now: datetime) -> int:
        """Cancel what waits for an endpoint that is deleted."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """UPDATE postrider.delivery
                   SET state = 'cancelled', due = NULL, reason = 'the endpoint was deleted', updated_at = $2
                   WHERE endpoint_id = $1 AND state IN ('waiting', 'retrying') AND EXISTS (
                     SELECT FROM postrider.endpoint AS e WHERE e.id = $1 AND e.state = 'deleted')
                   RETURNING event_id""",
                endpoint_id,
                now,
            )
        return len(rows)

    async def waiting(self, endpoint_id: int) -> int:
        """How many deliveries wait for an endpoint, retries included."""
        async with self._database.connection() as connection:
            count: int = await connection.fetchval(
                """SELECT count(*) FROM postrider.delivery
                   WHERE endpoint_id = $1 AND state IN ('waiting', 'retrying')""",
                endpoint_id,
            )
        return count

    async def disable(
        self, endpoint_id: int, reason: str, now: datetime, *, failing_since: datetime | None = None
    ) -> bool:
        """Disable an active endpoint, and announce it as an event `endpoint.disabled` of its workspace.

        Where `failing_since` is given, only if it still fails since then.
        """
        async with self._database.connection() as connection:
            event: str | None = await connection.fetchval(
                _DISABLE, endpoint_id, reason, now, endpoint_public_id(endpoint_id), failing_since
            )
        return event is not None

    async def failing(self) -> dict[int, Failing]:
        """Endpoints whose every attempt failed, and since when."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT id, failing_since, dialect FROM postrider.endpoint
                   WHERE failing_since IS NOT NULL AND state <> 'deleted' ORDER BY id"""
            )
        return {row["id"]: Failing(row["failing_since"], row["dialect"]) for row in rows}

    async def dialects(self) -> set[str]:
        """Those that endpoints speak."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT DISTINCT dialect FROM postrider.endpoint WHERE state <> 'deleted'"
            )
        return {row["dialect"] for row in rows}

    async def note_attempts(self, notes: Mapping[int, AttemptNote]) -> None:
        """Take in what became of the last attempts of some endpoints."""
        ids = sorted(notes)  # in one order, so that two daemons can't wait for each other
        async with self._database.transaction() as connection:
            # Memory forgets what is noted here: a crash may not undo it.
            await connection.execute("SET LOCAL synchronous_commit = on")
            await connection.execute(
                "SELECT FROM postrider.endpoint WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE", ids
            )
            await connection.execute(
                _NOTE_ATTEMPTS,
                ids,
                [notes[each].succeeded_at for each in ids],
                [notes[each].failing_since for each in ids],
            )

    async def secret(self, endpoint_id: int) -> str:
        """The newest signing secret, as it was given."""
        async with self._database.connection() as connection:
            sealed: bytes | None = await connection.fetchval(
                """SELECT sealed FROM postrider.endpoint_secret WHERE endpoint_id = $1
                   ORDER BY created_at DESC LIMIT 1""",
                endpoint_id,
            )
        public_id = endpoint_public_id(endpoint_id)
        if sealed is None:
            raise UsageError(f"endpoint {public_id} has no secret", "It was deleted.")
        try:
            return self.sealer.open(sealed, public_id)
        except PostriderError as error:
            raise PostriderError(f"endpoint {public_id}: {error.message}", error.hint) from None

    async def _add_secrets(
        self, connection: Connection, endpoint: Endpoint, secrets: Sequence[str], now: datetime
    ) -> None:
        await connection.executemany(
            """INSERT INTO postrider.endpoint_secret (endpoint_id, workspace_id, created_at, sealed)
               VALUES ($1, $2, $3, $4)""",
            [
                (
                    endpoint.id,
                    endpoint.workspace_id,
                    now - timedelta(microseconds=index),
                    self.sealer.seal(secret, endpoint_public_id(endpoint.id)),
                )
                for index, secret in enumerate(secrets)
            ],
        )

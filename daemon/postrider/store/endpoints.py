"""Endpoints: the snapshot that daemons match against, their secrets, and what people change."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from postrider.domain.errors import UsageError
from postrider.domain.model import Endpoint, EndpointState, endpoint_public_id
from postrider.domain.sealing import Sealer
from postrider.domain.signing import parse_secret
from postrider.store.database import Connection, Database

_COLUMNS = """
  e.id, e.workspace_id, e.url, e.description, e.patterns, e.exclusions, e.dialect, e.concurrency, e.headers,
  e.rate::text::float8 AS rate, e.state, e.disabled_reason, e.failing_since, e.created_at, e.updated_at,
  ARRAY(SELECT s.sealed FROM postrider.endpoint_secret AS s
        WHERE s.endpoint_id = e.id AND s.workspace_id = e.workspace_id ORDER BY s.created_at DESC) AS secrets
"""

_DISABLE = """
WITH disabled AS (
  UPDATE postrider.endpoint SET state = 'disabled', disabled_reason = $2, updated_at = $3
  WHERE id = $1 AND state = 'active' RETURNING id, workspace_id, url
)
SELECT postrider.emit('endpoint.disabled', json_build_object('id', $4::text, 'url', url, 'reason', $2::text),
                      workspace_id => workspace_id, object_type => 'endpoint', object_id => $4::text)
FROM disabled
"""


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """An endpoint as people see it."""

    endpoint: Endpoint
    disabled_reason: str | None
    created_at: datetime
    updated_at: datetime


class Endpoints:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def revision(self) -> int:
        """A number that changes with every change of an endpoint."""
        async with self._database.connection() as connection:
            revision: int = await connection.fetchval("SELECT revision FROM postrider.endpoint_revision")
        return revision

    async def snapshot(self) -> tuple[int, list[Endpoint]]:
        """The revision, and every endpoint that is not deleted."""
        revision = await self.revision()
        rows = await self.list_endpoints()
        return revision, [row.endpoint for row in rows]

    async def list_endpoints(
        self, *, workspace_id: str | None = None, include_deleted: bool = False
    ) -> list[EndpointRow]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""SELECT {_COLUMNS} FROM postrider.endpoint AS e
                    WHERE ($1::text IS NULL OR workspace_id = $1) AND ($2 OR state <> 'deleted')
                    ORDER BY workspace_id, created_at, id""",  # noqa: S608 (constant)
                workspace_id,
                include_deleted,
            )
        return [self._row(row) for row in rows]

    async def get(self, endpoint_id: int) -> EndpointRow:
        """Raises UsageError if there is no such endpoint."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_COLUMNS} FROM postrider.endpoint AS e WHERE id = $1",  # noqa: S608 (constant)
                endpoint_id,
            )
        if row is None:
            raise UsageError(
                f"there is no endpoint {endpoint_public_id(endpoint_id)}",
                "`postrider endpoint list` shows those there are.",
            )
        return self._row(row)

    async def add(self, endpoint: Endpoint, secrets: Sequence[str], now: datetime) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(
                """INSERT INTO postrider.endpoint
                     (id, workspace_id, url, description, patterns, exclusions, dialect, concurrency,
                      rate, headers, state, created_at, updated_at)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::json, $11, $12, $12)""",
                endpoint.id,
                endpoint.workspace_id,
                endpoint.url,
                endpoint.description,
                endpoint.patterns,
                endpoint.exclusions,
                endpoint.dialect,
                endpoint.concurrency,
                endpoint.rate,
                json.dumps(dict(endpoint.headers)),
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
        """Change what is not None; 0 lifts the bound that `concurrency`, or `rate` per second, was."""
        async with self._database.connection() as connection:
            await connection.execute(
                """UPDATE postrider.endpoint
                   SET url = coalesce($2, url), description = coalesce($3, description),
                     patterns = coalesce($4, patterns), exclusions = coalesce($5, exclusions),
                     dialect = coalesce($6, dialect),
                     concurrency = nullif(coalesce($7, concurrency), 0), rate = nullif(coalesce($8, rate), 0),
                     headers = coalesce($9::text::json, headers), updated_at = $10
                   WHERE id = $1 AND state <> 'deleted'""",
                endpoint_id,
                url,
                description,
                patterns,
                exclusions,
                dialect,
                concurrency,
                rate,
                json.dumps(dict(headers)) if headers is not None else None,
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
        """Delete an endpoint and its secrets, and cancel what waits; return how many were cancelled."""
        async with self._database.transaction() as connection:
            await connection.execute(
                "UPDATE postrider.endpoint SET state = 'deleted', updated_at = $2 WHERE id = $1",
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

    async def disable(self, endpoint_id: int, reason: str, now: datetime) -> bool:
        """Disable an active endpoint, and announce it as an event `endpoint.disabled` of its workspace."""
        async with self._database.connection() as connection:
            event: str | None = await connection.fetchval(
                _DISABLE, endpoint_id, reason, now, endpoint_public_id(endpoint_id)
            )
        return event is not None

    async def failing(self) -> dict[int, datetime]:
        """Endpoints whose every attempt failed, and since when."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT id, failing_since FROM postrider.endpoint
                   WHERE failing_since IS NOT NULL AND state <> 'deleted'"""
            )
        return {row["id"]: row["failing_since"] for row in rows}

    async def mark_failing(self, since: Mapping[int, datetime]) -> None:
        async with self._database.connection() as connection:
            await connection.execute(
                """UPDATE postrider.endpoint AS e SET failing_since = r.since
                   FROM (SELECT unnest($1::bigint[]) AS id, unnest($2::timestamptz[]) AS since) AS r
                   WHERE e.id = r.id AND e.failing_since IS NULL""",
                list(since),
                list(since.values()),
            )

    async def mark_recovered(self, endpoint_ids: Iterable[int]) -> None:
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE postrider.endpoint SET failing_since = NULL WHERE id = ANY($1::bigint[])",
                list(endpoint_ids),
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
        return self._sealer.open(sealed, public_id)

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
                    self._sealer.seal(secret, endpoint_public_id(endpoint.id)),
                )
                for index, secret in enumerate(secrets)
            ],
        )

    def _row(self, row: asyncpg.Record) -> EndpointRow:
        public_id = endpoint_public_id(row["id"])
        return EndpointRow(
            endpoint=Endpoint(
                id=row["id"],
                workspace_id=row["workspace_id"],
                url=row["url"],
                patterns=tuple(row["patterns"]),
                exclusions=tuple(row["exclusions"]),
                dialect=row["dialect"],
                secrets=tuple(
                    parse_secret(self._sealer.open(sealed, public_id)) for sealed in row["secrets"]
                ),
                state=EndpointState(row["state"]),
                concurrency=row["concurrency"],
                headers=json.loads(row["headers"]),
                failing_since=row["failing_since"],
                description=row["description"],
                rate=row["rate"],
            ),
            disabled_reason=row["disabled_reason"],
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        )

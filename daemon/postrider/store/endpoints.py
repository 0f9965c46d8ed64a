"""Endpoints and their secrets as people read and change them. Whatever changes one runs in a transaction that
took `lock` before it read what it goes by."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec import UNSET

from postrider.domain.audit import Scope
from postrider.domain.endpoint_input import EndpointChange
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.keysets import Moment, Number, Text
from postrider.domain.model import Endpoint, EndpointState, endpoint_public_id
from postrider.domain.sealing import Sealer
from postrider.store.database import Connection
from postrider.store.endpoint_rows import LISTED, EndpointRow, read_row, seal_headers
from postrider.store.endpoint_sealing import demand_fitting_key
from postrider.store.statement import Statement


class Place(NamedTuple):
    """Where an endpoint stands in lists."""

    workspace_id: Text
    created_at: Moment
    endpoint_id: Number


async def lock(connection: Connection) -> None:
    """Let no other transaction change an endpoint until this one ends. Triggers take this lock before any
    row: two of which one locked a row first would wait for each other."""
    await connection.execute("SELECT FROM postrider.endpoint_revision FOR UPDATE")


def page_statement(
    scope: Scope,
    *,
    workspace_id: str | None,
    state: EndpointState | None,
    include_deleted: bool,
    after: Place | None,
    limit: int | None,
) -> tuple[str, list[object]]:
    made = Statement()
    made.keep_to(scope, "e.workspace_id")
    if workspace_id is not None:
        made.require(f"e.workspace_id = {made.given(workspace_id, 'text')}")
    if state is not None:
        made.require(f"e.state = {made.given(state.value, 'text')}")
    elif not include_deleted:
        made.require("e.state <> 'deleted'")
    if after is not None:
        kinds = zip(after, ("text", "timestamptz", "bigint"), strict=True)
        place = ", ".join(made.given(value, kind) for value, kind in kinds)
        made.require(f"(e.workspace_id, e.created_at, e.id) > ({place})")
    return (
        f"{LISTED} WHERE {made.where} ORDER BY e.workspace_id, e.created_at, e.id "
        f"LIMIT {made.given(limit, 'bigint')}",
        made.parameters,
    )


async def page(
    connection: Connection,
    sealer: Sealer,
    scope: Scope,
    *,
    workspace_id: str | None = None,
    state: EndpointState | None = None,
    include_deleted: bool = False,
    after: Place | None = None,
    limit: int | None = None,
) -> list[EndpointRow]:
    """Endpoints by workspace, the oldest first, from the one after a place on."""
    statement, parameters = page_statement(
        scope,
        workspace_id=workspace_id,
        state=state,
        include_deleted=include_deleted,
        after=after,
        limit=limit,
    )
    return [read_row(row, sealer) for row in await connection.fetch(statement, *parameters)]


async def described(connection: Connection, scope: Scope, beginning: str) -> list[tuple[int, str]]:
    """Endpoints whose description begins like that, with it; deleted ones are left out."""
    made = Statement()
    made.keep_to(scope)
    made.require("state <> 'deleted'")
    made.require(f"starts_with(description, {made.given(beginning, 'text')})")
    rows = await connection.fetch(
        f"SELECT id, description FROM postrider.endpoint WHERE {made.where} ORDER BY id",  # noqa: S608
        *made.parameters,
    )
    return [(row["id"], row["description"]) for row in rows]


async def get(connection: Connection, sealer: Sealer, scope: Scope, endpoint_id: int) -> EndpointRow:
    """Raises UsageError if there is no such endpoint in the scope."""
    made = Statement(endpoint_id)
    made.require("e.id = $1")
    made.keep_to(scope, "e.workspace_id")
    row = await connection.fetchrow(f"{LISTED} WHERE {made.where}", *made.parameters)
    if row is None:
        raise UsageError(
            f"there is no endpoint {endpoint_public_id(endpoint_id)}",
            "`postrider endpoint list` shows those there are.",
        )
    return read_row(row, sealer)


async def secret(connection: Connection, sealer: Sealer, workspace_id: str, endpoint_id: int) -> str:
    """The newest signing secret, as it was given."""
    sealed: bytes | None = await connection.fetchval(
        """SELECT sealed FROM postrider.endpoint_secret WHERE endpoint_id = $1 AND workspace_id = $2
           ORDER BY created_at DESC LIMIT 1""",
        endpoint_id,
        workspace_id,
    )
    public_id = endpoint_public_id(endpoint_id)
    if sealed is None:
        raise UsageError(f"endpoint {public_id} has no secret", "It was deleted.")
    try:
        return sealer.open(sealed, public_id)
    except PostriderError as error:
        raise PostriderError(f"endpoint {public_id}: {error.message}", error.hint) from None


async def add(
    connection: Connection, sealer: Sealer, endpoint: Endpoint, secrets: Sequence[str], now: datetime
) -> None:
    """Raises PostriderError where the key is another than the daemon's seems to be."""
    await demand_fitting_key(connection, sealer)
    headers, sealed_headers = seal_headers(endpoint.headers, endpoint.id, sealer)
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
    await connection.executemany(
        """INSERT INTO postrider.endpoint_secret (endpoint_id, workspace_id, created_at, sealed)
           VALUES ($1, $2, $3, $4)""",
        [
            (
                endpoint.id,
                endpoint.workspace_id,
                now - timedelta(microseconds=index),
                sealer.seal(secret, endpoint_public_id(endpoint.id)),
            )
            for index, secret in enumerate(secrets)
        ],
    )


async def update(
    connection: Connection,
    sealer: Sealer,
    workspace_id: str,
    endpoint_id: int,
    change: EndpointChange,
    *,
    now: datetime,
) -> None:
    """Change what is given; a deleted one stays as it is. Raises PostriderError where there are headers, and
    the key is another than the daemon's seems to be."""
    made = Statement(endpoint_id, workspace_id, now)
    columns = [
        (change.url, "url", "text"),
        (change.description, "description", "text"),
        (change.patterns, "patterns", "text[]"),
        (change.exclusions, "exclusions", "text[]"),
        (change.dialect, "dialect", "text"),
        (change.concurrency, "concurrency", "integer"),
        (change.rate, "rate", "real"),
    ]
    changes = [f"{name} = {made.given(value, kind)}" for value, name, kind in columns if value is not UNSET]
    if isinstance(change.headers, Mapping):
        if change.headers:
            await demand_fitting_key(connection, sealer)
        headers, sealed_headers = seal_headers(change.headers, endpoint_id, sealer)
        changes.append(f"headers = {made.given(headers, 'text')}::json")
        changes.append(f"sealed_headers = {made.given(sealed_headers, 'bytea')}")
    await connection.execute(
        f"""UPDATE postrider.endpoint SET {", ".join([*changes, "updated_at = $3"])}
            WHERE id = $1 AND workspace_id = $2 AND state <> 'deleted'""",  # noqa: S608 (constants)
        *made.parameters,
    )


async def set_state(
    connection: Connection, workspace_id: str, endpoint_id: int, state: EndpointState, now: datetime
) -> bool:
    """Pause or resume; False if the endpoint was in that state, is deleted or not verified."""
    changed: int | None = await connection.fetchval(
        """UPDATE postrider.endpoint SET state = $3, disabled_reason = NULL, failing_since = NULL,
             updated_at = $4
           WHERE id = $1 AND workspace_id = $2 AND state NOT IN ('deleted', 'unverified', $3) RETURNING id""",
        endpoint_id,
        workspace_id,
        state.value,
        now,
    )
    return changed is not None


async def activate(connection: Connection, workspace_id: str, endpoint_id: int, now: datetime) -> bool:
    """Let an endpoint that answered its handshake take part; False if it did before, or is deleted."""
    changed: int | None = await connection.fetchval(
        """UPDATE postrider.endpoint SET state = 'active', updated_at = $3
           WHERE id = $1 AND workspace_id = $2 AND state = 'unverified' RETURNING id""",
        endpoint_id,
        workspace_id,
        now,
    )
    return changed is not None


async def delete(connection: Connection, workspace_id: str, endpoint_id: int, now: datetime) -> None:
    """Delete an endpoint, its secrets and headers. What waits for it is to be cancelled after the commit."""
    await connection.execute(
        """UPDATE postrider.endpoint
           SET state = 'deleted', headers = '{}', sealed_headers = NULL, updated_at = $3
           WHERE id = $1 AND workspace_id = $2""",
        endpoint_id,
        workspace_id,
        now,
    )
    await connection.execute(
        "DELETE FROM postrider.endpoint_secret WHERE endpoint_id = $1 AND workspace_id = $2",
        endpoint_id,
        workspace_id,
    )


async def dialects(connection: Connection) -> set[str]:
    """Those that endpoints speak."""
    rows = await connection.fetch("SELECT DISTINCT dialect FROM postrider.endpoint WHERE state <> 'deleted'")
    return {row["dialect"] for row in rows}

"""Endpoints as people look at them, pause, resume and delete them."""

from dataclasses import dataclass, replace

from postrider.domain.audit import Actor, Scope
from postrider.domain.keysets import keyset_cursor, parse_keyset_cursor
from postrider.domain.model import EndpointState, endpoint_public_id
from postrider.engine.cancelling import cancel_left
from postrider.operations.endpoint_audit import note_endpoint
from postrider.operations.endpoint_rules import demand_living, demand_verified
from postrider.operations.work import Backend, UnitOfWork
from postrider.store import endpoint_deliveries, endpoints
from postrider.store.endpoint_rows import EndpointRow
from postrider.store.endpoints import Place

CANCELLED_AT_A_TIME = 5000
"""Deliveries."""
_CURSOR = "endpoints"


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of endpoints."""

    rows: list[EndpointRow]
    next_cursor: str | None
    """Where the next page begins; None behind the last one."""


@dataclass(frozen=True, slots=True)
class Resumed:
    row: EndpointRow
    changed: bool
    """False where it was active already."""
    waiting: int
    """Deliveries that waited for it, before a daemon took some of them."""


async def list_endpoints(
    work: UnitOfWork,
    *,
    workspace_id: str | None = None,
    state: EndpointState | None = None,
    include_deleted: bool = False,
    cursor: str | None = None,
    limit: int | None = None,
) -> Listed:
    """Endpoints by workspace, the oldest first; all of them without a limit."""
    rows = await endpoints.page(
        work.connection,
        work.setting.sealer,
        work.scope,
        workspace_id=workspace_id,
        state=state,
        include_deleted=include_deleted,
        after=None if cursor is None else parse_keyset_cursor(cursor, _CURSOR, Place),
        limit=None if limit is None else limit + 1,
    )
    if limit is None or len(rows) <= limit:
        return Listed(rows, None)
    last = rows[limit - 1]
    place = Place(last.endpoint.workspace_id, last.created_at, last.endpoint.id)
    return Listed(rows[:limit], keyset_cursor(_CURSOR, place))


async def get(work: UnitOfWork, endpoint_id: int) -> EndpointRow:
    """Raises UsageError if there is no such endpoint."""
    return await endpoints.get(work.connection, work.setting.sealer, work.scope, endpoint_id)


async def get_living(work: UnitOfWork, endpoint_id: int) -> EndpointRow:
    """The same, and PostriderError if it is deleted."""
    row = await get(work, endpoint_id)
    demand_living(row)
    return row


async def described(work: UnitOfWork, beginning: str) -> list[tuple[int, str]]:
    """Endpoints whose description begins like that, with it; deleted ones are left out."""
    return await endpoints.described(work.connection, work.scope, beginning)


async def waiting(work: UnitOfWork, endpoint_id: int) -> int:
    """How many deliveries wait for an endpoint, retries included."""
    endpoint = (await get(work, endpoint_id)).endpoint
    return await endpoint_deliveries.waiting(work.connection, endpoint.workspace_id, endpoint.id)


async def secret(work: UnitOfWork, endpoint_id: int) -> str:
    """The newest signing secret, as it was given. That somebody saw it is noted."""
    endpoint = (await get(work, endpoint_id)).endpoint
    found = await endpoints.secret(work.connection, work.setting.sealer, endpoint.workspace_id, endpoint.id)
    await work.note(
        "endpoint.secret_shown", endpoint_public_id(endpoint.id), workspace_id=endpoint.workspace_id
    )
    return found


async def pause(work: UnitOfWork, endpoint_id: int) -> bool:
    """Stop sending; what comes meanwhile waits. False if it was paused already."""
    return await _set_state(work, endpoint_id, EndpointState.PAUSED, "endpoint.paused")


async def resume(work: UnitOfWork, endpoint_id: int) -> Resumed:
    """Send again, what waits first; also what was disabled. `recovery` tells what it missed meanwhile."""
    endpoint = demand_verified(await get(work, endpoint_id))
    count = await endpoint_deliveries.waiting(work.connection, endpoint.workspace_id, endpoint.id)
    changed = await _set_state(work, endpoint_id, EndpointState.ACTIVE, "endpoint.resumed")
    return Resumed(await get(work, endpoint_id), changed, count)


async def delete(backend: Backend, actor: Actor, scope: Scope, endpoint_id: int) -> int:
    """Delete an endpoint and its secret, and cancel what waits for it; return how many deliveries those were.

    They are cancelled after the endpoint is gone, some at a time: all endpoints are locked while one is
    changed, a backlog may be large, and of what is left by one who dies meanwhile a daemon takes care.
    """
    async with backend.begin(actor, scope) as work:
        await endpoints.lock(work.connection)
        endpoint = demand_living(await get(work, endpoint_id))
        await endpoints.delete(work.connection, endpoint.workspace_id, endpoint.id, work.now)
        await note_endpoint(work, "endpoint.deleted", before=endpoint)
    return await cancel_left(backend.database, backend.clock, endpoint.id, CANCELLED_AT_A_TIME)


async def _set_state(work: UnitOfWork, endpoint_id: int, state: EndpointState, action: str) -> bool:
    await endpoints.lock(work.connection)
    before = demand_verified(await get(work, endpoint_id))
    changed = await endpoints.set_state(work.connection, before.workspace_id, before.id, state, work.now)
    if changed:
        await note_endpoint(work, action, before=before, after=replace(before, state=state))
    return changed

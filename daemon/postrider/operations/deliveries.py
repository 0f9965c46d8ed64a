"""Deliveries as people look at them, have them sent again, or cancel them."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from postrider.domain.audit import Actor, Scope
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.lists import DeliveryFilter, DeliveryRow, FoundDeliveries
from postrider.domain.model import (
    Attempt,
    DeliveryKey,
    DeliveryState,
    delivery_public_id,
    endpoint_public_id,
    event_public_id,
)
from postrider.operations.delivery_absent import why_absent, why_missed
from postrider.operations.delivery_request import Request, request_of
from postrider.operations.work import Backend, UnitOfWork
from postrider.store import delivery_search, history
from postrider.store.history import Requeued

RETRY_BATCH = 1000
"""Deliveries that are queued again in one transaction."""
RETRIABLE = frozenset({
    DeliveryState.FAILED, DeliveryState.CANCELLED, DeliveryState.RETRYING, DeliveryState.SUCCEEDED
})  # fmt: skip
"""States of which deliveries can be sent again."""


@dataclass(frozen=True, slots=True)
class ShownDelivery:
    row: DeliveryRow
    attempts: list[Attempt]
    request: Request


@dataclass(frozen=True, slots=True)
class Retried:
    queued: list[DeliveryKey]
    refused: dict[DeliveryKey, str]
    """Why each of them is not sent again."""


@dataclass(frozen=True, slots=True)
class RetriedAll:
    queued: list[DeliveryKey]
    left_out: int
    """Their endpoint is deleted, their event is past retention, or they are being sent already."""


async def list_deliveries(
    work: UnitOfWork, chosen: DeliveryFilter, *, after: DeliveryKey | None, limit: int
) -> FoundDeliveries:
    """The deliveries of a filter, newest event first, from the one `after` which to go on."""
    return await delivery_search.search(
        work.connection, work.scope, chosen, after=after, newest_first=True, limit=limit
    )


async def show(work: UnitOfWork, key: DeliveryKey) -> ShownDelivery:
    """A delivery, every attempt of it, and its request. Raises UsageError if there is none."""
    row = await _get(work, key)
    attempts = await history.attempts(work.connection, row.workspace_id, key)
    return ShownDelivery(row, attempts, await request_of(work, row, attempts))


async def retry(work: UnitOfWork, keys: Sequence[DeliveryKey]) -> Retried:
    """Send deliveries again, each with a whole new schedule."""
    keys = list(dict.fromkeys(keys))
    requeued = await history.retry(work.connection, work.scope, keys, work.now)
    for each in requeued:
        await work.note(
            "delivery.retried",
            delivery_public_id(*each.key),
            workspace_id=each.workspace_id,
            before={"state": each.was},
            after={"state": DeliveryState.WAITING},
        )
    queued = {each.key for each in requeued}
    refused = {key: await _why_not(work, key) for key in keys if key not in queued}
    return Retried([key for key in keys if key in queued], refused)


def check_retriable(state: DeliveryState | None) -> None:
    """Raises UsageError for a state, or None for all, of which deliveries can't all be sent again."""
    if state not in RETRIABLE:
        raise UsageError(
            "only what is failed, cancelled, retrying or succeeded can be sent again",
            "Choose those of one of these states (--status).",
        )


async def count(backend: Backend, actor: Actor, scope: Scope, chosen: DeliveryFilter) -> int:
    """How many deliveries `retry_all` would try to send again."""
    return sum([len(keys) async for keys in _batches(backend, actor, scope, chosen)])


async def retry_all(
    backend: Backend,
    actor: Actor,
    scope: Scope,
    chosen: DeliveryFilter,
    on_progress: Callable[[int], None] = lambda _: None,
) -> RetriedAll:
    """Send the deliveries of a filter again, in short transactions, each of which notes how many it did."""
    queued: list[DeliveryKey] = []
    left_out = 0
    async for keys in _batches(backend, actor, scope, chosen):
        async with backend.begin(actor, scope) as work:
            requeued = await history.retry(work.connection, work.scope, keys, work.now)
            if requeued:
                await _note_batch(work, chosen, requeued)
        done = {each.key for each in requeued}
        queued += [key for key in keys if key in done]
        left_out += len(keys) - len(done)
        on_progress(len(queued))
    return RetriedAll(queued, left_out)


async def cancel(work: UnitOfWork, key: DeliveryKey) -> DeliveryRow:
    """Give up a delivery that waits, or is to be retried; return it as it is now.

    Raises UsageError if there is none, PostriderError where it can't be cancelled (any more).
    """
    workspace_id = (await _get(work, key)).workspace_id
    was = await history.cancel(work.connection, workspace_id, key, work.now)
    if was is None:
        now = await _get(work, key)
        said = (
            "is being sent at this moment"
            if now.state is DeliveryState.SENDING
            else f"is over already: it is {now.state}"
        )
        raise PostriderError(
            f"{delivery_public_id(*key)} {said}", "What waits, or is to be retried, can be cancelled."
        )
    await work.note(
        "delivery.cancelled",
        delivery_public_id(*key),
        workspace_id=workspace_id,
        before={"state": was},
        after={"state": DeliveryState.CANCELLED},
    )
    return await _get(work, key)


async def _get(work: UnitOfWork, key: DeliveryKey) -> DeliveryRow:
    row = await history.get(work.connection, work.scope, key)
    if row is None:
        raise UsageError(f"there is no delivery {delivery_public_id(*key)}", await why_absent(work, key))
    return row


async def _why_not(work: UnitOfWork, key: DeliveryKey) -> str:
    """Why a delivery can't be sent again."""
    row = await history.get(work.connection, work.scope, key)
    if row is None:
        return await why_missed(work, key) or "there is no such delivery"
    if row.state in (DeliveryState.WAITING, DeliveryState.SENDING):
        return f"it is {row.state} already"
    if row.test:
        ep = endpoint_public_id(row.endpoint_id)
        return f"it is a test; for another one: postrider endpoint test {ep}, or verify {ep}"
    return "its endpoint is deleted, or its event is past retention"


async def _batches(
    backend: Backend, actor: Actor, scope: Scope, chosen: DeliveryFilter
) -> AsyncIterator[list[DeliveryKey]]:
    """The deliveries of a filter, all of them, oldest event first; tests are for the moment in which a person
    asks, and left out. What comes meanwhile is left alone, so that it ends."""
    check_retriable(chosen.state)
    chosen = replace(chosen, until=chosen.until or backend.clock.now(), tests=False)
    after: DeliveryKey | None = None
    while True:
        async with backend.begin(actor, scope) as work:
            found = await delivery_search.search(
                work.connection, work.scope, chosen, after=after, newest_first=False, limit=RETRY_BATCH
            )
        keys = [row.key for row in found.rows]
        if keys:
            yield keys
        if len(keys) < RETRY_BATCH and found.looked_to is None:
            return
        after = found.looked_to or keys[-1]


async def _note_batch(work: UnitOfWork, chosen: DeliveryFilter, requeued: Sequence[Requeued]) -> None:
    workspaces = {each.workspace_id for each in requeued}
    wanted = {
        "endpoint": chosen.endpoint_id and endpoint_public_id(chosen.endpoint_id),
        "event": chosen.event_id and event_public_id(chosen.event_id),
        "workspace": chosen.workspace_id,
        "state": chosen.state,
        "since": chosen.since,
        "until": chosen.until,
        "type": chosen.type_pattern,
        "http_status": chosen.http_status and [chosen.http_status[0], chosen.http_status[-1]],
    }
    await work.note(
        "delivery.retried",
        "deliveries" if chosen.endpoint_id is None else endpoint_public_id(chosen.endpoint_id),
        workspace_id=workspaces.pop() if len(workspaces) == 1 else None,
        after={
            "filter": {name: value for name, value in wanted.items() if value is not None},
            "deliveries": len(requeued),
        },
    )

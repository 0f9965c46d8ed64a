"""Any one event, sent to an endpoint because a person asks."""

from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.matching import wants
from postrider.domain.model import (
    DeliveryKey,
    DeliveryState,
    EndpointState,
    Event,
    delivery_public_id,
    endpoint_public_id,
    event_public_id,
)
from postrider.operations.endpoint_rules import demand_living
from postrider.operations.work import UnitOfWork
from postrider.store import endpoint_deliveries, history, missed
from postrider.store.endpoint_rows import EndpointRow


async def resend(
    work: UnitOfWork, event: Event, row: EndpointRow
) -> tuple[DeliveryKey, DeliveryState | None]:
    """Send an event to an endpoint that it matches, whether or not it was sent before; return the delivery,
    and the state that it was in, None where there was none.

    Raises UsageError where it does not match, PostriderError where it can't be sent now.
    """
    endpoint = row.endpoint
    evt, ep = event_public_id(event.id), endpoint_public_id(endpoint.id)
    if endpoint.workspace_id != event.workspace_id:
        raise UsageError(
            f"{evt} is of another workspace than {ep}", "An endpoint gets the events of its own workspace."
        )
    if event.test:
        raise UsageError(
            f"{evt} is a test event, of the one endpoint that it was made for",
            f"Send another: postrider endpoint test {ep}",
        )
    if not wants(endpoint, event.type):
        raise UsageError(
            f"{ep} is not subscribed to {event.type}", f"postrider endpoint update {ep} --events …"
        )
    demand_living(row)
    if endpoint.state is EndpointState.UNVERIFIED:
        raise PostriderError(f"{ep} has not answered its handshake yet", f"postrider endpoint verify {ep}")
    key = (event.id, endpoint.id)
    fates = await missed.fates(work.connection, endpoint.workspace_id, endpoint.id, [event.id])
    was = None
    if event.id in fates.recorded:
        requeued = await history.retry(work.connection, work.scope, [key], work.now)
        sent = bool(requeued)
        was = requeued[0].was if requeued else None
    elif fates.queued or fates.claimed:
        raise PostriderError(
            f"{evt} is being delivered at this moment", "Look again soon: `postrider event show` tells."
        )
    else:
        sent = bool(
            await endpoint_deliveries.send(
                work.connection, endpoint.workspace_id, endpoint.id, [event.id], work.now
            )
        )
    if not sent:
        raise PostriderError(
            f"{delivery_public_id(*key)} is not over yet: it waits, or is being sent",
            f"postrider delivery show {delivery_public_id(*key)}",
        )
    return key, was

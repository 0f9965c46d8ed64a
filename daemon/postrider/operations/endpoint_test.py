"""A test event for an endpoint, sent because a person asks."""

from datetime import datetime

from postrider.domain.audit import Actor, Scope
from postrider.domain.catalogue import check_type
from postrider.domain.dialects import Dialect
from postrider.domain.matching import matching_patterns
from postrider.domain.model import Endpoint, Event
from postrider.operations.dialects import known_dialect
from postrider.operations.endpoint_rules import demand_usable
from postrider.operations.endpoints import get
from postrider.operations.single_requests import Sent, check_data, made_up_event, send_once
from postrider.operations.work import Backend

_PLAIN_TYPE = "postrider.test"


async def test(
    backend: Backend,
    actor: Actor,
    scope: Scope,
    endpoint_id: int,
    *,
    event_type: str | None = None,
    data: str | None = None,
) -> Sent:
    """Send the catalogue's sample of an event type, or `data` as such an event, to one endpoint at once,
    whatever its state. Without a type it is the first that the endpoint is subscribed to."""
    async with backend.begin(actor, scope) as work:
        endpoint = demand_usable(await get(work, endpoint_id))
    dialect = known_dialect(backend.setting.dialects, endpoint.dialect)
    if data is not None:
        check_data(data)
    event = _event(endpoint, dialect, event_type, data, backend.clock.now())
    return await send_once(backend, actor, scope, dialect, endpoint=endpoint, event=event)


def _event(
    endpoint: Endpoint, dialect: Dialect, event_type: str | None, data: str | None, now: datetime
) -> Event:
    catalogue = dialect.catalogue
    chosen = event_type if event_type is not None else _first_subscribed(endpoint, dialect)
    if dialect.handshake is not None and chosen == dialect.handshake.type:
        return made_up_event(endpoint, chosen, now)
    check_type(chosen)
    if chosen in catalogue.types or catalogue.closed:
        sample = catalogue.sample(chosen)
        return made_up_event(
            endpoint,
            chosen,
            now,
            data=sample.data if data is None else data,
            previous_attributes=sample.previous_attributes,
            object_type=sample.object_type,
            object_id=sample.object_id,
            actor=sample.actor,
            related=sample.related,
        )
    return made_up_event(endpoint, chosen, now, data='{"test":true}' if data is None else data)


def _first_subscribed(endpoint: Endpoint, dialect: Dialect) -> str:
    wanted = set(endpoint.patterns)
    for event_type in dialect.catalogue.types:
        if wanted & matching_patterns(event_type):
            return event_type
    return next((each for each in endpoint.patterns if "*" not in each), _PLAIN_TYPE)

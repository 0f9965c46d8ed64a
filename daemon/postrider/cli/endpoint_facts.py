"""What commands tell of an endpoint."""

from dataclasses import replace
from typing import Any

from postrider.cli.common import Stores, ago
from postrider.domain.errors import PostriderError
from postrider.domain.model import Endpoint, EndpointState, delivery_public_id, endpoint_public_id
from postrider.store.endpoint_rows import EndpointRow
from postrider.store.last_deliveries import LastDelivery


async def living(stores: Stores, endpoint_id: int) -> EndpointRow:
    row = await stores.endpoints.get(endpoint_id)
    if row.endpoint.state is EndpointState.DELETED:
        raise PostriderError(
            f"endpoint {endpoint_public_id(endpoint_id)} is deleted",
            "Add it anew with `postrider endpoint add`.",
        )
    return row


def usable(row: EndpointRow) -> EndpointRow:
    """The endpoint, if something can be sent to it; else PostriderError."""
    if row.endpoint.unusable is not None:
        raise PostriderError(
            f"{endpoint_public_id(row.endpoint.id)} can't be used: {row.endpoint.unusable}",
            "Restore what it lacks (secrets.key_file?), or delete it and add it anew.",
        )
    return row


def state_text(endpoint: Endpoint) -> str:
    return endpoint.state if endpoint.unusable is None else f"{endpoint.state}, unusable"


def pattern_text(endpoint: Endpoint) -> str:
    return ",".join(endpoint.patterns) + "".join(f" -{pattern}" for pattern in endpoint.exclusions)


def last_delivery_text(row: EndpointRow) -> str | None:
    """When the last delivery was tried, and what came of it."""
    last = row.last_delivery
    if last is None:
        return None
    return f"{last.state} {ago(last.at)}" + (f": {last.reason}" if last.reason else "")


def _last_delivery_facts(last: LastDelivery | None) -> dict[str, Any] | None:
    if last is None:
        return None
    return {
        "id": delivery_public_id(last.event_id, last.endpoint_id),
        "state": last.state,
        "reason": last.reason,
        "at": last.at,
    }


def endpoint_facts(row: EndpointRow) -> dict[str, Any]:
    """An endpoint without what may be secret: its keys, and the values of its headers."""
    endpoint = replace(row.endpoint, secrets=())
    return {
        "id": endpoint_public_id(endpoint.id),
        "workspace": endpoint.workspace_id,
        "url": endpoint.url,
        "description": endpoint.description,
        "state": endpoint.state,
        "unusable": endpoint.unusable,
        "disabled_reason": row.disabled_reason,
        "failing_since": endpoint.failing_since,
        "events": list(endpoint.patterns),
        "exclude": list(endpoint.exclusions),
        "dialect": endpoint.dialect,
        "concurrency": endpoint.concurrency,
        "rate_per_s": endpoint.rate,
        "headers": sorted(endpoint.headers),
        # Names of the contract for what no endpoint has yet.
        "ordered": False,
        "filter": None,
        "external_id": None,
        "last_delivery": _last_delivery_facts(row.last_delivery),
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }

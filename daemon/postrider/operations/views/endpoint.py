"""An endpoint, and what was sent to one on demand, as JSON."""

from typing import Any

from postrider.domain.model import Reply, delivery_public_id, endpoint_public_id
from postrider.operations.single_requests import Sent
from postrider.store.endpoint_rows import EndpointRow
from postrider.store.last_deliveries import LastDelivery


def endpoint_view(row: EndpointRow) -> dict[str, Any]:
    """An endpoint without what may be secret: its keys, and the values of its headers."""
    endpoint = row.endpoint
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
        "last_delivery": _last_delivery(row.last_delivery),
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def sent_view(sent: Sent) -> dict[str, Any]:
    """What came of a test."""
    result = sent.result
    facts = {
        "delivery": sent.delivery_id,
        "event_type": sent.event.type,
        "test": sent.event.test,
        "state": sent.state,
        "succeeded": sent.succeeded,
        "duration_ms": round(result.duration_ms, 1),
    }
    if isinstance(result, Reply):
        return facts | {"status": result.status, "response_body": result.body}
    return facts | {"error_kind": result.kind, "reason": result.reason}


def _last_delivery(last: LastDelivery | None) -> dict[str, Any] | None:
    if last is None:
        return None
    return {
        "id": delivery_public_id(last.event_id, last.endpoint_id),
        "state": last.state,
        "reason": last.reason,
        "at": last.at,
    }

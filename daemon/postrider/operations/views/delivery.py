"""Deliveries as JSON."""

from postrider.domain.lists import DeliveryRow
from postrider.domain.model import DeliveryKey, delivery_public_id, endpoint_public_id, event_public_id
from postrider.operations.deliveries import Retried, RetriedAll, ShownDelivery
from postrider.operations.views.attempt import attempt_view


def delivery_view(row: DeliveryRow) -> dict[str, object]:
    return {
        "id": delivery_public_id(*row.key),
        "event": event_public_id(row.event_id),
        "event_type": row.event_type,
        "test": row.test,
        "emitted_at": row.emitted_at,
        "endpoint": endpoint_public_id(row.endpoint_id),
        "host": row.host,
        "workspace": row.workspace_id,
        "state": row.state,
        "attempts": row.attempts,
        "http_status": row.http_status,
        "due": row.due,
        "reason": row.reason,
        "updated_at": row.updated_at,
    }


def shown_delivery_view(shown: ShownDelivery) -> dict[str, object]:
    """A delivery with its request and its attempts."""
    request = shown.request
    return {
        **delivery_view(shown.row),
        "request": {
            "url": request.url,
            "headers": request.headers,
            "body": request.body,
            "notes": request.notes,
        },
        "history": [attempt_view(each) for each in shown.attempts],
    }


def retried_view(retried: Retried) -> dict[str, object]:
    return {
        "queued": _ids(retried.queued),
        "refused": {delivery_public_id(*key): why for key, why in retried.refused.items()},
    }


def retried_all_view(retried: RetriedAll) -> dict[str, object]:
    return {"queued": _ids(retried.queued), "refused": {}, "left_out": retried.left_out}


def _ids(keys: list[DeliveryKey]) -> list[str]:
    return [delivery_public_id(*key) for key in keys]

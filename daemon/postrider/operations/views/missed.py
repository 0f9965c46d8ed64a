"""Why an endpoint did not get an event."""

from postrider.domain.model import endpoint_public_id
from postrider.store.missed import Missed


def missed_view(missed: Missed) -> dict[str, object]:
    return {
        "endpoint": endpoint_public_id(missed.endpoint_id),
        "disabled_since": missed.since,
        "disabled_until": missed.until,
        "disabled_reason": missed.reason,
    }

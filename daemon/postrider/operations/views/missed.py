"""Why an endpoint did not get an event."""

from postrider.domain.model import endpoint_public_id
from postrider.operations.views.wording import printable
from postrider.store.missed import Missed


def missed_view(missed: Missed) -> dict[str, object]:
    return {
        "endpoint": endpoint_public_id(missed.endpoint_id),
        "disabled_since": missed.since,
        "disabled_until": missed.until,
        "disabled_reason": missed.reason,
    }


def missed_text(missed: Missed) -> str:
    since = printable(missed.since) + (f" to {printable(missed.until)}" if missed.until else "")
    return (
        f"{endpoint_public_id(missed.endpoint_id)} missed it: disabled since {since}"
        f" ({printable(missed.reason or 'no reason given')})"
    )

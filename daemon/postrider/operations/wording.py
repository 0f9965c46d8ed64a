"""Values and facts as text for a person, wherever it stands: in a view, an error or a hint."""

from datetime import datetime

from postrider.domain.model import endpoint_public_id
from postrider.edges.clock import SystemClock
from postrider.store.missed import Missed


def printable(value: object) -> str:
    """Text for a person: local time to the second with its zone, as `parse_moment` reads it; and no control
    character that could drive the terminal."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().isoformat(" ", "seconds")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))


def ago(moment: datetime, now: datetime | None = None) -> str:
    """How long ago, or in how long, in the largest unit that fits."""
    seconds = ((now or SystemClock().now()) - moment).total_seconds()
    size, unit = next(
        (step for step in ((86_400, "d"), (3600, "h"), (60, "m")) if abs(seconds) >= step[0]), (1, "s")
    )
    amount = f"{abs(seconds) / size:.0f} {unit}"
    return f"{amount} ago" if seconds > -0.5 else f"in {amount}"


def missed_text(missed: Missed) -> str:
    since = printable(missed.since) + (f" to {printable(missed.until)}" if missed.until else "")
    return (
        f"{endpoint_public_id(missed.endpoint_id)} missed it: disabled since {since}"
        f" ({printable(missed.reason or 'no reason given')})"
    )

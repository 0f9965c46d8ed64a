"""Opaque keyset cursors: where a list of events goes on, whatever was added meanwhile."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID

from postrider.domain.errors import UsageError

_LENGTH = 17


def event_cursor(event_id: UUID, *, newest_first: bool) -> str:
    """The cursor that stands after an event, in one direction of the list."""
    return urlsafe_b64encode((b"-" if newest_first else b"+") + event_id.bytes).decode().rstrip("=")


def parse_event_cursor(cursor: str, *, newest_first: bool) -> UUID:
    """The event after which to go on. Raises UsageError for a cursor that no such list gave."""
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except ValueError:
        raw = b""
    if len(raw) != _LENGTH or raw[:1] not in (b"-", b"+"):
        raise UsageError(f"{cursor!r} is not a cursor", "Take it from the list before, as it is.")
    if (raw[:1] == b"-") != newest_first:
        raise UsageError("the cursor belongs to the other order", "Keep --sort as it was.")
    return UUID(bytes=raw[1:])

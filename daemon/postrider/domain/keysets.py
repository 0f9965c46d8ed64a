"""Opaque cursors of lists that are in the order of several columns: the values of the last row, for the list
that gave them."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import Annotated, TypeVar

import msgspec

from postrider.domain.errors import UsageError

Keys = TypeVar("Keys")

# Somebody may write a cursor himself: what the database has no column for is no value of a row.
Number = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


def keyset_cursor(of: str, keys: object) -> str:
    """The cursor that stands after a row with these values, in the list of that name."""
    return urlsafe_b64encode(msgspec.json.encode((of, keys))).decode().rstrip("=")


def parse_keyset_cursor(cursor: str, of: str, kind: type[Keys]) -> Keys:
    """The values after which to go on. Raises UsageError for a cursor that no such list gave."""
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        named, keys = msgspec.json.decode(raw, type=tuple[str, kind])  # type: ignore[valid-type]
    except (ValueError, msgspec.DecodeError):  # of its letters, or of what they say
        named = None
    if named != of:
        raise UsageError(f"{cursor!r} is not a cursor", "Take it from the list before, as it is.")
    found: Keys = keys
    return found

"""Opaque cursors of lists that are in the order of several columns: the values of the last row, for the list
that gave them."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TypeVar

import msgspec

from postrider.domain.errors import UsageError

Keys = TypeVar("Keys")


def keyset_cursor(of: str, keys: object) -> str:
    """The cursor that stands after a row with these values, in the list of that name."""
    return urlsafe_b64encode(msgspec.json.encode((of, keys))).decode().rstrip("=")


def parse_keyset_cursor(cursor: str, of: str, kind: type[Keys]) -> Keys:
    """The values after which to go on. Raises UsageError for a cursor that no such list gave."""
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        named, keys = msgspec.json.decode(raw, type=tuple[str, kind])  # type: ignore[valid-type]
    except ValueError:  # of its letters, or of what they say
        named = None
    if named != of:
        raise UsageError(f"{cursor!r} is not a cursor", "Take it from the list before, as it is.")
    found: Keys = keys
    return found

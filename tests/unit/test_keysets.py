"""Opaque cursors of lists that are in the order of several columns."""

from base64 import urlsafe_b64encode
from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from postrider.domain.errors import UsageError
from postrider.domain.keysets import Moment, Number, Text, keyset_cursor, parse_keyset_cursor


class Place(NamedTuple):
    workspace_id: Text
    at: Moment
    number: Number


HERE = Place('w"s, 1', datetime(2026, 3, 15, 10, 30, 0, 123_456, tzinfo=UTC), 2**63 - 1)


def test_a_cursor_says_where_it_stands() -> None:
    assert parse_keyset_cursor(keyset_cursor("places", HERE), "places", Place) == HERE
    assert parse_keyset_cursor(keyset_cursor("numbers", 7), "numbers", Number) == 7


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "äö",
        "nonsense",
        keyset_cursor("places", HERE)[:-3],
        keyset_cursor("numbers", 7),
        keyset_cursor("places", 7),
        keyset_cursor("others", HERE),
        urlsafe_b64encode(b"\xff\xfe").decode(),
        keyset_cursor("places", HERE._replace(number=2**63)),
        keyset_cursor("places", HERE._replace(number=-(2**63) - 1)),
        keyset_cursor("places", HERE._replace(workspace_id="a\x00b")),
        keyset_cursor("places", HERE._replace(at=HERE.at.replace(tzinfo=None))),
    ],
)
def test_what_no_such_list_gave_is_refused(cursor: str) -> None:
    with pytest.raises(UsageError, match="is not a cursor"):
        parse_keyset_cursor(cursor, "places", Place)

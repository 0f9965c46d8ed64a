"""Moments as people write them."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from postrider.domain.errors import UsageError
from postrider.edges.durations import parse_moment

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("7d", NOW - timedelta(days=7)),
        ("2026-03-15", datetime(2026, 3, 14, 23, tzinfo=UTC)),  # local time
        ("2026-03-15 10:30", datetime(2026, 3, 15, 9, 30, tzinfo=UTC)),
        ("2026-03-15T10:30:15Z", datetime(2026, 3, 15, 10, 30, 15, tzinfo=UTC)),
        ("2026-03-15 10:30:00-05:00", datetime(2026, 3, 15, 15, 30, tzinfo=UTC)),
    ],
)
def test_a_moment_is_read(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2", "99999999999d", "2026-13-01", "0001-01-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_moment(text, NOW)

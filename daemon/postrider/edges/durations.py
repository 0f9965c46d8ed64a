"""Durations, rates and moments as people write them: `500ms`, `15s`, `5m`, `2h`, `30d`; `5/s`, `100/m`,
`1000/h`; `2h` ago, `2026-03-15`, `2026-03-15 10:30+01:00`."""

import re
from datetime import datetime, timedelta

from postrider.domain.errors import UsageError

_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(\d{1,17}(?:\.\d{1,3})?)(ms|s|m|h|d)", re.ASCII)
_RATE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)/([smh])", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of a duration; UsageError for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a duration", "Write a number and ms, s, m, h or d, such as 500ms or 15s."
        )
    return float(match[1]) * _UNITS[match[2]]


def parse_rate(text: str) -> float:
    """How many a second a rate is, always more than 0; UsageError for anything else."""
    match = _RATE.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise UsageError(
            f"{text!r} is not a rate", "Write a number above 0 and /s, /m or /h, such as 5/s, 0.5/s or 100/m."
        )
    return float(match[1]) / _UNITS[match[2]]


def parse_moment(text: str, now: datetime) -> datetime:
    """A moment from how long ago it was, or from ISO 8601, in local time where that has no zone; UsageError
    for anything else."""
    try:
        if _DURATION.fullmatch(text):
            return now - timedelta(seconds=parse_duration(text))
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{text!r} is not a time",
            "Write how long ago (30m, 2h, 7d), or a time such as 2026-03-15 or 2026-03-15T10:30+01:00.",
        ) from None


def format_duration(seconds: float) -> str:
    """In the largest unit in which it is a whole number, else in ms, as `parse_duration` reads it."""
    if seconds == 0:
        return "0s"
    for unit, size in _UNITS.items():
        amount = seconds / size
        if amount >= 1 and abs(amount - round(amount)) < 1e-9:
            return f"{round(amount)}{unit}"
    return f"{seconds * 1000:.3f}".rstrip("0").rstrip(".") + "ms"

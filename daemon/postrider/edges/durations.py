"""Durations and rates as people write them: `500ms`, `15s`, `5m`, `2h`, `30d`; `5/s`, `100/m`, `1000/h`."""

import re

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


def format_duration(seconds: float) -> str:
    """In the largest unit in which it is a whole number, else in ms, as `parse_duration` reads it."""
    if seconds == 0:
        return "0s"
    for unit, size in _UNITS.items():
        amount = seconds / size
        if amount >= 1 and abs(amount - round(amount)) < 1e-9:
            return f"{round(amount)}{unit}"
    return f"{seconds * 1000:.3f}".rstrip("0").rstrip(".") + "ms"

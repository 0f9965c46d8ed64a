"""Durations as people write them: `500ms`, `15s`, `5m`, `2h`, `30d`."""

import re

from postrider.domain.errors import UsageError

_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(\d{1,17}(?:\.\d{1,3})?)(ms|s|m|h|d)", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of a duration; UsageError for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a duration", "Write a number and ms, s, m, h or d, such as 500ms or 15s."
        )
    return float(match[1]) * _UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """In the largest unit in which it is a whole number, else in ms, as `parse_duration` reads it."""
    if seconds == 0:
        return "0s"
    for unit, size in _UNITS.items():
        amount = seconds / size
        if amount >= 1 and abs(amount - round(amount)) < 1e-9:
            return f"{round(amount)}{unit}"
    return f"{seconds * 1000:.3f}".rstrip("0").rstrip(".") + "ms"

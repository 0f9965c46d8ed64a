"""What `postrider check` finds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    level: str
    """ok, warn or fail."""
    what: str
    message: str
    hint: str = ""

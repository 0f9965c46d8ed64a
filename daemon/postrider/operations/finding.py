"""What `postrider check` finds."""

from dataclasses import dataclass

from postrider.operations.problems import Concern


@dataclass(frozen=True, slots=True)
class Finding:
    level: str
    """ok, warn or fail."""
    what: str
    message: str
    hint: str = ""
    scope: Concern = Concern.SERVICE
    """Who has to act on it."""

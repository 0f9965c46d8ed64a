"""What `postrider check` finds."""

from dataclasses import dataclass

from postrider.cli.condition import Scope


@dataclass(frozen=True, slots=True)
class Finding:
    level: str
    """ok, warn or fail."""
    what: str
    message: str
    hint: str = ""
    scope: Scope = Scope.SERVICE
    """Who has to act on it."""

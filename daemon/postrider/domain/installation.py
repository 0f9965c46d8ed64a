"""What Postrider has in a database, and what becomes of it when it is removed."""

from dataclasses import dataclass

from postrider.domain.errors import PostriderError

COUNTED_UP_TO = 1_000_000
"""Tables may be large, and a person wants to know by and by."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What Postrider has in a database."""

    database: str
    tables: int
    size: str
    counts: dict[str, int]
    """By what is counted; one more than COUNTED_UP_TO stands for all above it."""
    triggers: tuple[str, ...]
    """On the CRM's tables."""
    roles: dict[str, tuple[str, ...]]
    """And the logins that were made their members."""
    others: tuple[str, ...]
    """Objects outside of the schema that use it."""
    daemons: tuple[str, ...]
    """Those that live."""


@dataclass(frozen=True, slots=True)
class Removal:
    triggers: int
    dropped: tuple[str, ...]
    kept: dict[str, str]
    """Roles that stay, and why."""


def demand_removable(found: Installation) -> None:
    """Raises PostriderError where somebody still uses it."""
    if found.daemons:
        raise PostriderError(
            f"daemons run on {found.database}: {', '.join(found.daemons)}",
            "Stop them first: systemctl disable --now postrider",
        )
    if found.others:
        raise PostriderError(
            f"these use the schema postrider of {found.database}, and would go with it:\n"
            + "\n".join(f"  {each}" for each in found.others),
            "Drop or change them first.",
        )

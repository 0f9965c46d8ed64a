"""What people ask about dialects: which there are."""

import difflib
from collections.abc import Mapping

from postrider.domain.dialects import Dialect
from postrider.domain.errors import UsageError


def known_dialect(dialects: Mapping[str, Dialect], name: str) -> Dialect:
    """The dialect of that name; UsageError, with the nearest name, if there is none."""
    if name not in dialects:
        nearest = difflib.get_close_matches(name, dialects, n=1)
        raise UsageError(
            f"there is no dialect {name!r}",
            f"Did you mean {nearest[0]}?" if nearest else f"Known are: {', '.join(sorted(dialects))}.",
        )
    return dialects[name]

"""Statements whose conditions depend on what somebody asks for: only those are in it, so that the plan can
follow the index that leads to what is asked for."""

from postrider.domain.audit import Scope

LOOK_AT_MOST = 100_000
"""Rows that one search of people's looks at; it tells where it ended."""
BY_INDEX = "; ".join(
    f"SET LOCAL {name} = off" for name in ("enable_seqscan", "enable_bitmapscan", "enable_sort", "jit")
)
"""Rows are read in the order of an index, whatever the statistics say, until a limit is reached; a bitmap,
or a sort, would hold all there are first."""


class Statement:
    """Conditions, and the parameters in them."""

    def __init__(self, *parameters: object) -> None:
        self.parameters = list(parameters)
        self._conditions: list[str] = []

    def inner(self) -> "Statement":
        """For a query inside of this one: conditions of its own, and the same parameters."""
        inside = Statement()
        inside.parameters = self.parameters
        return inside

    def given(self, value: object, kind: str) -> str:
        """A parameter, as the text of the statement names it."""
        self.parameters.append(value)
        return f"${len(self.parameters)}::{kind}"

    def require(self, condition: str) -> None:
        self._conditions.append(condition)

    def keep_to(self, scope: Scope, column: str = "workspace_id") -> None:
        """Leave out what lies outside of a scope."""
        if scope.workspace_id is not None:
            self.require(f"{column} = {self.given(scope.workspace_id, 'text')}")

    @property
    def where(self) -> str:
        return " AND ".join(self._conditions) or "true"


def in_order(newest_first: bool) -> tuple[str, str]:
    """How a list of events is sorted, and what comes later in it."""
    return ("DESC", "<") if newest_first else ("ASC", ">")

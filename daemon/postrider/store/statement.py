"""Statements whose conditions depend on what somebody asks for: only those are in it, so that the plan can
follow the index that leads to what is asked for."""

from postrider.domain.audit import Scope


class Statement:
    """Conditions, and the parameters in them."""

    def __init__(self, *parameters: object) -> None:
        self.parameters = list(parameters)
        self._conditions: list[str] = []

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

"""Endpoints that lie in no database."""

from postrider.domain.model import Endpoint, EndpointState


def endpoint(number: int, concurrency: int | None = None, *, workspace: str = "default") -> Endpoint:
    return Endpoint(
        id=number,
        workspace_id=workspace,
        url="https://example.com",
        patterns=("*",),
        exclusions=(),
        dialect="standard",
        secrets=(),
        state=EndpointState.ACTIVE,
        concurrency=concurrency,
        headers={},
        failing_since=None,
    )

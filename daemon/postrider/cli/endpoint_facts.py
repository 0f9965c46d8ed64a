"""What commands say of endpoints."""

from collections.abc import Mapping
from typing import Any

from postrider.domain.model import Endpoint
from postrider.operations.wording import ago


def state_text(endpoint: Endpoint) -> str:
    return endpoint.state if endpoint.unusable is None else f"{endpoint.state}, unusable"


def pattern_text(endpoint: Endpoint) -> str:
    return ",".join(endpoint.patterns) + "".join(f" -{pattern}" for pattern in endpoint.exclusions)


def last_delivery_text(facts: Mapping[str, Any]) -> str | None:
    """When the last delivery of an endpoint was tried, and what came of it."""
    last = facts["last_delivery"]
    if last is None:
        return None
    return f"{last['state']} {ago(last['at'])}" + (f": {last['reason']}" if last["reason"] else "")

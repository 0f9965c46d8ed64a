"""A database that a test makes up: it is its own connection, and answers the verbs of the stores itself."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest

from postrider.store import daemons, deliveries, delivery_results, outbox

VERBS = {
    deliveries: (
        "recorded", "claim_waiting", "promote_due", "next_due", "waiting_endpoints", "owned", "release",
    ),
    delivery_results: ("record",),
    outbox: ("claims", "read", "release"),
    daemons: ("set_idle",),
}  # fmt: skip


class MadeUpDatabase:
    spares_one = False
    """No service keeps a connection."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Self]:
        yield self

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Self]:
        async with self.connection() as connection:
            yield connection


def answer_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each verb of the engine call the method of its connection that has its name."""

    def of(name: str) -> Callable[..., Any]:
        async def verb(connection: Any, *arguments: Any, **named: Any) -> Any:
            return await getattr(connection, name)(*arguments, **named)

        return verb

    for module, names in VERBS.items():
        for name in names:
            monkeypatch.setattr(module, name, of(name))

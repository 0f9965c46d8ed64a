"""A daemon inside the test, with a clock of the test's, a receiver process, and its database at hand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from postrider.app import Daemon, Tuning
from postrider.edges.clock import SharedClock
from postrider.edges.config import load_config
from postrider.store.database import Connection
from tests.support.daemon_process import PATIENCE_S, QUEUED, write_config


class Stage:
    def __init__(self, daemon: Daemon, connection: Connection) -> None:
        self.daemon = daemon
        self.connection = connection

    async def emit(self, event_type: str = "deal.updated", data: str = "{}", **named: Any) -> str:
        extra = "".join(f", {name} => ${number}" for number, name in enumerate(named, start=3))
        event_id: str = await self.connection.fetchval(
            f"SELECT postrider.emit($1, $2::json{extra})", event_type, data, *named.values()
        )
        return event_id

    async def pending(self) -> int:
        count: int = await self.connection.fetchval(QUEUED)
        return count

    async def states(self) -> list[str]:
        rows = await self.connection.fetch(
            "SELECT state FROM postrider.delivery ORDER BY event_id, endpoint_id"
        )
        return [row["state"] for row in rows]

    async def wait_for_states(self, *states: str) -> None:
        await eventually(self.states, list(states))


async def eventually(ask: Callable[[], Awaitable[Any]], expected: Any, timeout: float = PATIENCE_S) -> None:
    """Ask until the answer is the expected one."""
    answer = None
    try:
        async with asyncio.timeout(timeout):
            while (answer := await ask()) != expected:
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{answer!r} did not become {expected!r} within {timeout} s") from None


@asynccontextmanager
async def staged(
    dsn: str,
    directory: Path,
    clock: SharedClock | None = None,
    tuning: Tuning | None = None,
    **sections: dict[str, Any],
) -> AsyncIterator[Stage]:
    """Run a daemon; `sections` goes into its configuration."""
    config = load_config(write_config(directory, dsn, "postrider", **sections), {})
    daemon = Daemon(config, clock=clock, tuning=tuning)
    connection: Connection = await asyncpg.connect(dsn)
    try:
        await daemon.start()
        try:
            yield Stage(daemon, connection)
        finally:
            await daemon.stop()
    finally:
        await connection.close()

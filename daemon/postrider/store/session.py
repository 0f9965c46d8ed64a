"""A session of the daemon's own: for LISTEN, and for the lock that tells others that it lives."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

import asyncpg

from postrider.store.database import Connection, Database, translated_errors

CLOSE_TIMEOUT_S = 2.0


class Session:
    def __init__(self, connection: Connection, on_ended: Callable[[], None]) -> None:
        self._connection = connection
        self._on_ended = on_ended
        connection.add_termination_listener(self._ended)

    @classmethod
    async def begin(cls, database: Database, on_ended: Callable[[], None]) -> Self:
        """Connect. `on_ended` is called when the server, or the network, ends it. Raises DatabaseError."""
        return cls(await database.dedicated(), on_ended)

    def __repr__(self) -> str:
        return f"<Session {'up' if self.up else 'down'}>"

    @property
    def up(self) -> bool:
        return not self._connection.is_closed()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Its connection, for verbs. Raises DatabaseError."""
        with translated_errors():
            yield self._connection

    async def listen(self, channels: Iterable[str], on_notified: Callable[[str], None]) -> None:
        """From now on `on_notified` is called with the channel of each notification. Raises DatabaseError."""

        def notified(_connection: object, _pid: int, channel: str, _payload: object) -> None:
            on_notified(channel)

        with translated_errors():
            for channel in channels:
                await self._connection.add_listener(channel, notified)

    async def close(self) -> None:
        self._connection.remove_termination_listener(self._ended)
        if self.up:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._connection.close(timeout=CLOSE_TIMEOUT_S)

    def cut(self) -> None:
        """End it without a word to the server, which may not answer."""
        self._connection.remove_termination_listener(self._ended)
        self._connection.terminate()

    def _ended(self, *_: object) -> None:
        self._on_ended()

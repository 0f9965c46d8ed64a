"""A clock that tests move by hand."""

import asyncio
from datetime import UTC, datetime, timedelta


class FakeClock:
    """Stands still until `advance`; waits whose time has come then end."""

    def __init__(self) -> None:
        self._start = datetime.now(UTC)
        self._elapsed = 0.0
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        # A service's first run is due at 0.
        return 1_000_000 + self._elapsed

    def busy(self) -> float:
        return 0.0

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:
        over = asyncio.get_running_loop().create_future()
        if timeout is not None:
            self._waiting.append((self._elapsed + timeout, over))
        setting = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({setting, over}, return_when=asyncio.FIRST_COMPLETED)
            return event.is_set()
        finally:
            setting.cancel()
            over.cancel()

    async def sleep(self, seconds: float) -> None:
        await self.wait(asyncio.Event(), seconds)

    def follow(self, theirs: datetime, round_trip: float) -> None:
        """It stands for the database's clock, too."""

    def advance(self, seconds: float) -> None:
        self._elapsed += seconds
        due = [over for at, over in self._waiting if at <= self._elapsed]
        self._waiting = [(at, over) for at, over in self._waiting if at > self._elapsed and not over.done()]
        for over in due:
            if not over.done():
                over.set_result(None)

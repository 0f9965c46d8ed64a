"""The one source of time. Services take a `Clock`, so tests can move it by hand."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The wall clock, in UTC; goes into SQL as a parameter."""

    def monotonic(self) -> float:
        """Seconds that only grow; for durations."""

    def cpu(self) -> float:
        """Seconds of CPU time that this process took; to be held against `monotonic`."""

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:
        """Wait until `event` is set (True) or `timeout` seconds of this clock passed (False)."""


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def cpu(self) -> float:
        return time.process_time()

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                return await event.wait()
        except TimeoutError:
            return False

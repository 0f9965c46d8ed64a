"""The one source of time. Services take a `Clock`, so tests can move it by hand.

What daemons on several hosts write for each other, such as when a retry is due, goes by the database's clock:
each of them measures how far its own is off.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The wall clock, in UTC; goes into SQL as a parameter."""

    def monotonic(self) -> float:
        """Seconds that only grow; for durations."""

    def busy(self) -> float:
        """Seconds that this process ran, or would have run if it had been given a core; to be held against
        `monotonic`."""

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:
        """Wait until `event` is set (True) or `timeout` seconds of this clock passed (False)."""

    async def sleep(self, seconds: float) -> None:
        """Wait until so many seconds of this clock passed."""


class SharedClock(Clock, Protocol):
    def follow(self, theirs: datetime, round_trip: float) -> None:
        """The database's clock said `theirs` in answer to a question that took `round_trip` seconds until
        now."""


class SystemClock:
    monotonic = staticmethod(time.monotonic)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def busy(self) -> float:
        try:
            # Of the main thread, which has the event loop: ns on a core, and ready but waiting for one.
            on_core, waiting, _ = Path("/proc/self/schedstat").read_text().split()
        except (OSError, ValueError):  # not Linux
            return time.process_time()
        return (int(on_core) + int(waiting)) / 1e9

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                return await event.wait()
        except TimeoutError:
            return False

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


HELD = timedelta(seconds=10)
"""So far a measurement may be off, and the time stands still instead of going back. More is a step of the
database's clock, such as that of another server after a failover."""


class DatabaseClock:
    """The database's time, as measured last; this host's until then."""

    def __init__(self, host: Clock) -> None:
        self._host = host
        self.monotonic = host.monotonic  # no call of its own: it is asked several times for each delivery
        self._anchor: tuple[datetime, float] | None = None
        self._latest = datetime.min.replace(tzinfo=UTC)

    def now(self) -> datetime:
        if self._anchor is None:
            return self._host.now()
        theirs, at = self._anchor
        # From the measurement on it goes by the monotonic clock: a step of this host's changes nothing.
        now = theirs + timedelta(0, self.monotonic() - at)
        latest = self._latest
        if now < latest and latest - now <= HELD:
            return latest
        self._latest = now
        return now

    def busy(self) -> float:
        return self._host.busy()

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:
        return await self._host.wait(event, timeout)

    async def sleep(self, seconds: float) -> None:
        await self._host.sleep(seconds)

    def follow(self, theirs: datetime, round_trip: float) -> None:
        self._anchor = (theirs, self.monotonic() - round_trip / 2)

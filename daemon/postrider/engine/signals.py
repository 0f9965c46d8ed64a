"""What services tell each other against the flow of events: hints that there may be something to do.

The constructor of whoever speaks demands the signal of whoever listens: a wire that is forgotten does not
start. To set one never waits and never fails. Facts that go with it lie in a note book, of which whoever
listens takes all that came since the last time at once; see `recorded`.
"""

import asyncio

from postrider.edges.clock import Clock


class Signal:
    """Something may have changed. Any number of them before it is looked at are one."""

    def __init__(self, wake: "Signal | None" = None) -> None:
        """Each sets `wake` too: that of a service which waits for several."""
        self._event = asyncio.Event()
        self._wake = wake

    def __repr__(self) -> str:
        return f"<Signal {'set' if self._event.is_set() else 'clear'}>"

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()
        if self._wake is not None:
            self._wake.set()

    def take(self) -> bool:
        """Whether it was set; clear it, before the look: what comes meanwhile is not lost."""
        was_set = self._event.is_set()
        self._event.clear()
        return was_set

    def clear(self) -> None:
        """Take note of it: before the look, so that what comes meanwhile is not lost."""
        self._event.clear()

    async def wait(self, clock: Clock, timeout: float | None = None) -> bool:
        """Until it is set (True), or so many seconds have passed (False)."""
        return await clock.wait(self._event, timeout)


class EngineSignals:
    """What wakes dispatcher and scheduler, and why."""

    def __init__(self) -> None:
        self.dispatch = Signal()
        """There may be events to claim, or room for them."""
        self.events_doubt = Signal(self.dispatch)
        """Memory and database may differ about claims of events."""
        self.schedule = Signal()
        """There may be retries to promote, or lanes to refill."""
        self.rescan = Signal(self.schedule)
        """Deliveries may wait that nobody here left waiting."""
        self.deliveries_doubt = Signal(self.schedule)
        """Memory and database may differ about claims of deliveries."""
        self.endpoints = Signal()
        """Endpoints may have changed."""
        self.endpoints_read_anew = Signal()
        """All endpoints were read, not only what changed."""
        self.failed = Signal()
        """A service failed, and not for want of the database."""

    def __repr__(self) -> str:
        names = " ".join(name for name, signal in vars(self).items() if signal)
        return f"<EngineSignals {names or 'clear'}>"

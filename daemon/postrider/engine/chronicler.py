"""Keeps the last delivery of each endpoint, for people who list endpoints.

Woken by the first attempt that is recorded; after that it writes every few seconds what came since, one row
for each endpoint whatever it got, and a bounded number of rows at a time: it costs the same under any load.
"""

import asyncio
from itertools import islice

from postrider.edges.clock import Clock
from postrider.engine.recorded import Recorded
from postrider.store.deliveries import DeliveryResult
from postrider.store.last_deliveries import LastDeliveries, LastDelivery

INTERVAL_S = 5.0
BATCH = 2_000
"""Endpoints at a time; with more of them in an interval, each comes later."""


class Chronicler:
    def __init__(self, *, last_deliveries: LastDeliveries, clock: Clock) -> None:
        self._last_deliveries = last_deliveries
        self._clock = clock
        self._wake = asyncio.Event()
        self._noted: dict[int, LastDelivery] = {}
        """By endpoint; those that wait for longest come first."""

    def __repr__(self) -> str:
        return f"<Chronicler {len(self._noted)} to write>"

    def put(self, recorded: Recorded) -> None:
        """Take in the attempts that were recorded."""
        for entry in recorded.attempts:
            if entry.result.attempt is not None:
                self.note(entry.result)

    def note(self, result: DeliveryResult) -> None:
        """Take in an attempt that was recorded."""
        if not self._noted:
            self._wake.set()
        self._noted[result.endpoint_id] = result.as_last

    async def run(self) -> None:
        while True:
            await self._clock.wait(self._wake, None)
            await self.run_once()
            await self._clock.wait(asyncio.Event(), INTERVAL_S)

    async def run_once(self) -> int:
        """Write some of what was noted; return how many endpoints that were."""
        batch = dict(islice(self._noted.items(), BATCH))
        if batch:
            await self._last_deliveries.note(list(batch.values()))
        for endpoint_id, written in batch.items():
            if self._noted[endpoint_id] is written:
                del self._noted[endpoint_id]
        if not self._noted:
            self._wake.clear()
        return len(batch)

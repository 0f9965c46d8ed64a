"""Keeps the last delivery of each endpoint, for people who list endpoints.

Woken by the first attempt that is recorded; after that it writes every few seconds what came since, one row
for each endpoint whatever it got, and a bounded number of rows at a time: it costs the same under any load.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from postrider.edges.clock import Clock
from postrider.engine.recorded import Recorded
from postrider.engine.signals import Signal
from postrider.store import last_deliveries
from postrider.store.database import Database
from postrider.store.last_deliveries import LastDelivery


@dataclass(frozen=True, slots=True)
class LastDeliveryTuning:
    interval_s: float = 5.0
    batch: int = 2_000
    """Endpoints at a time; with more of them in an interval, each comes later."""


@dataclass(frozen=True, slots=True)
class LastDeliveryCounts:
    written: int
    """Endpoints."""


class LastDeliveryBook:
    """The last delivery of each endpoint that had one since it was written before."""

    def __init__(self) -> None:
        self.news = Signal()
        """Something is to be written."""
        self._noted: dict[int, LastDelivery] = {}
        """By endpoint; those that wait for longest come first."""

    def __repr__(self) -> str:
        return f"<LastDeliveryBook {len(self._noted)} to write>"

    def __len__(self) -> int:
        return len(self._noted)

    def put(self, recorded: Recorded) -> None:
        for attempt in recorded.attempts:
            if attempt.result.attempt is not None:
                self._noted[attempt.result.endpoint_id] = attempt.result.as_last
        if self._noted:
            self.news.set()

    def first(self, count: int) -> dict[int, LastDelivery]:
        """Those that wait for longest, so many of them."""
        return dict(islice(self._noted.items(), count))

    def written(self, deliveries: Mapping[int, LastDelivery]) -> None:
        for endpoint_id, delivery in deliveries.items():
            if self._noted[endpoint_id] is delivery:  # else there is a newer one
                del self._noted[endpoint_id]
        if not self._noted:
            self.news.clear()


class LastDeliveryKeeper:
    def __init__(
        self,
        *,
        database: Database,
        book: LastDeliveryBook,
        clock: Clock,
        tuning: LastDeliveryTuning | None = None,
    ) -> None:
        self._database = database
        self._book = book
        self._clock = clock
        self._tuning = tuning or LastDeliveryTuning()

    def __repr__(self) -> str:
        return f"<LastDeliveryKeeper {len(self._book)} to write>"

    async def run(self) -> None:
        while True:
            await self._book.news.wait(self._clock)
            await self.run_once()
            await self._clock.sleep(self._tuning.interval_s)

    async def run_once(self) -> LastDeliveryCounts:
        """Write some of what was noted."""
        batch = self._book.first(self._tuning.batch)
        if batch:
            async with self._database.connection() as connection:
                await last_deliveries.note(connection, list(batch.values()))
        self._book.written(batch)
        return LastDeliveryCounts(len(batch))

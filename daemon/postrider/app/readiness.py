"""Whether the daemon can deliver, and whether its claim loop turns: for /readyz, /healthz and systemd."""

from dataclasses import dataclass

from postrider.app.composition import Services
from postrider.domain.errors import PostriderError
from postrider.edges.clock import Clock
from postrider.edges.systemd import Notifier
from postrider.store.database import Database, DatabaseUnavailable
from postrider.store.migrations import Schema, check_schema


@dataclass(frozen=True, slots=True)
class Readiness:
    database: bool
    schema: bool
    listener: bool

    @property
    def ready(self) -> bool:
        return self.database and self.schema and self.listener


async def ask_readiness(database: Database, schema: Schema, *, listening: bool) -> Readiness:
    """Ask the database, not memory. One that is away had the right schema when the daemon started."""
    try:
        async with database.connection() as connection:
            await check_schema(connection, schema)
    except DatabaseUnavailable:
        return Readiness(False, True, listening)
    except PostriderError:
        return Readiness(True, False, listening)
    return Readiness(True, True, listening)


class ClaimLoopWatch:
    """Looks whether the claim loop turns, and tells systemd so."""

    def __init__(
        self, services: Services, database: Database, notifier: Notifier, clock: Clock, stale_s: float
    ) -> None:
        """`stale_s`: seconds without a turn, after which it hangs."""
        self._dispatcher = services.dispatcher
        self._database = database
        self._notifier = notifier
        self._clock = clock
        self._stale_s = stale_s

    def __repr__(self) -> str:
        return f"<ClaimLoopWatch {'turning' if self.turning() else 'hanging'}>"

    def turning(self) -> bool:
        """Whether it turns, or waits for a database that is away."""
        if not self._database.available:
            return True
        return self._clock.monotonic() - self._dispatcher.turned_at < self._stale_s

    async def run(self) -> None:
        interval_s = self._notifier.watchdog_interval
        assert interval_s is not None, "systemd asked for nothing"
        while True:
            self.run_once()
            await self._clock.sleep(interval_s)

    def run_once(self) -> int:
        """Return how often systemd was told."""
        if not self.turning():
            return 0
        self._notifier.watchdog()
        return 1

"""Keeps services running: one that fails is logged and started again after a growing wait.

Losing the database is no failure of a service: it waits until the database is back, and says nothing,
because the database says it once.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from postrider.domain.errors import PostriderError
from postrider.edges.clock import Clock
from postrider.edges.metrics import Metrics
from postrider.store.database import Database, DatabaseUnavailable

BACKOFF_S = (0.1, 0.5, 1.0, 5.0)
"""Waits before a failed service is started again; the last one repeats."""
STABLE_S = 30.0
"""A service that ran this long starts over with the shortest wait."""
DATABASE_RETRY_S = 0.2

log = structlog.get_logger()


class Supervisor:
    def __init__(
        self, *, database: Database, clock: Clock, metrics: Metrics, on_failure: Callable[[], None]
    ) -> None:
        """`on_failure` is called when a service failed, and not for want of the database."""
        self._clock = clock
        self._metrics = metrics
        self._on_failure = on_failure
        self._restored = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        database.on_restored = self._restored.set

    def __repr__(self) -> str:
        return f"<Supervisor {' '.join(self._tasks)}>"

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self._metrics.service_failures.labels(name)  # is shown from now on
        self._tasks[name] = asyncio.create_task(self._keep_running(name, run), name=name)

    async def stop(self, *names: str) -> None:
        """Cancel services, and wait until they ended."""
        tasks = [self._tasks.pop(name) for name in names if name in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_running(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            started = self._clock.monotonic()
            try:
                await run()
            except DatabaseUnavailable:
                self._restored.clear()
                await self._clock.wait(self._restored, DATABASE_RETRY_S)
                continue
            except Exception as error:
                failures = 1 if self._clock.monotonic() - started > STABLE_S else failures + 1
                wait = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]
                self._metrics.service_failures.labels(name).inc()
                known = isinstance(error, PostriderError)
                log.error(
                    "service.failed",
                    service=name,
                    reason=str(error) or type(error).__name__,
                    restart_in_s=wait,
                    exc_info=None if known else error,
                )
                self._on_failure()
                await asyncio.sleep(wait)
            else:
                return

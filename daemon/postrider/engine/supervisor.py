"""Keeps services running: one that fails is logged and started again after a growing wait.

Losing the database is no failure of a service: it waits until the database is back, and says nothing,
because the database says it once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog

from postrider.domain.errors import PostriderError
from postrider.edges.clock import Clock
from postrider.edges.metrics import Metrics
from postrider.engine.signals import Signal
from postrider.store.database import Database, DatabaseUnavailable

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SupervisorTuning:
    backoff_s: tuple[float, ...] = (0.1, 0.5, 1.0, 5.0)
    """Waits before a failed service is started again; the last one repeats."""
    stable_s: float = 30.0
    """A service that ran this long starts over with the shortest wait."""
    database_retry_s: float = 0.2


class Supervisor:
    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        metrics: Metrics,
        failed: Signal,
        tuning: SupervisorTuning | None = None,
    ) -> None:
        """`failed` is set when a service failed, and not for want of the database."""
        self._database = database
        self._clock = clock
        self._metrics = metrics
        self._failed = failed
        self._tuning = tuning or SupervisorTuning()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Supervisor of {', '.join(self._tasks) or 'nothing'}>"

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        assert name not in self._tasks, f"{name} runs already"
        self._metrics.service_failures.labels(name)  # is shown from now on
        self._tasks[name] = asyncio.create_task(self._keep_running(name, run), name=name)

    async def stop(self, names: Iterable[str]) -> None:
        """Cancel services, and wait until they ended."""
        tasks = [self._tasks.pop(name) for name in names if name in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_running(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while name in self._tasks:  # what fails while it is stopped may have kept that from getting here
            started = self._clock.monotonic()
            try:
                await run()
            except DatabaseUnavailable:
                await self._await_database()
            except Exception as error:
                stable = self._clock.monotonic() - started > self._tuning.stable_s
                failures = 1 if stable else failures + 1
                wait = self._tuning.backoff_s[min(failures, len(self._tuning.backoff_s)) - 1]
                self._metrics.service_failures.labels(name).inc()
                known = isinstance(error, PostriderError)
                log.error(
                    "service.failed",
                    service=name,
                    reason=str(error) or type(error).__name__,
                    restart_in_s=wait,
                    exc_info=None if known else error,
                )
                self._failed.set()
                await self._clock.sleep(wait)
            else:
                return

    async def _await_database(self) -> None:
        """Until it is back; or a moment, also where it is away for one service alone."""
        if self._database.available:
            await self._clock.sleep(self._tuning.database_retry_s)
        else:
            await self._clock.wait(self._database.restored, self._tuning.database_retry_s)

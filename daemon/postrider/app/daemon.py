"""The daemon: starts the services, and stops them so that nothing is lost or doubled."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import TypeVar

import structlog

from postrider import __version__
from postrider.app.clients import Clients
from postrider.app.composition import Services, Surroundings, compose
from postrider.app.readiness import ClaimLoopWatch, Readiness, ask_readiness
from postrider.app.reloading import Reloader, publish, tell_of_overruled
from postrider.app.running import Running, StopPhase, running_services
from postrider.app.tuning import Tuning
from postrider.edges.clock import DatabaseClock, SharedClock, SystemClock
from postrider.edges.config import Config
from postrider.edges.dialect_files import default_dialect, load_dialects
from postrider.edges.metrics import Metrics
from postrider.edges.randomness import random_hex
from postrider.edges.resources import sql_dir
from postrider.edges.settings import read_sealer
from postrider.edges.systemd import Notifier
from postrider.engine.failures import Failures
from postrider.engine.rescue import Freed, leave
from postrider.engine.sender import SendSettings
from postrider.store.database import Database, DatabaseError, DatabaseUnavailable
from postrider.store.migrations import check_schema, read_schema

T = TypeVar("T")

log = structlog.get_logger()


class Daemon:
    """`start`, then `stop`; between them `reload` as often as you like."""

    # From the start on:
    services: Services
    running: Running

    def __init__(
        self,
        config: Config,
        *,
        clock: SharedClock | None = None,
        notifier: Notifier | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self._started_with = config
        self._tuning = tuning or Tuning()
        self._host_clock = clock or SystemClock()
        self.clock = clock or DatabaseClock(self._host_clock)
        self.metrics = Metrics(__version__)
        self.database = Database(
            config.database.dsn,
            pool_size=config.database.pool_size,
            synchronous_commit=False,
            process=random_hex(6),
        )
        self._failures = Failures(self.clock, self._tuning.failures)
        self._clients = Clients(self.metrics, self._failures)
        self._notifier = notifier or Notifier()
        self._schema = read_schema(sql_dir())
        self._schema_checked = False
        self._opened = AsyncExitStack()
        self.started = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Daemon {self.running if self.started.is_set() else 'not started'}>"

    @property
    def config(self) -> Config:
        """The one in use."""
        return self._reloader.config if self.started.is_set() else self._started_with

    async def start(self) -> None:
        """Connect, check the schema, rescue what a dead daemon left, and start the services.

        Waits for a database that is away; raises PostriderError for what waiting can't mend.
        """
        config = self._started_with
        sealer = read_sealer(config)
        dialects = load_dialects(config.dialect.paths, config.dialect.values)
        default = default_dialect(dialects, config.dialect.default)
        await self._patiently(self.database.open)
        self._opened.push_async_callback(self.database.close)
        self._opened.push_async_callback(self._clients.close_all)
        client = await self._clients.open(config)
        settings = SendSettings(client, dialects, config.delivery.user_agent, config.network.https_only)
        around = Surroundings(
            database=self.database,
            schema=self._schema,
            clock=self.clock,
            signing_clock=self._host_clock,
            metrics=self.metrics,
            notifier=self._notifier,
            failures=self._failures,
        )
        services = self.services = compose(config, around, settings, sealer, self._tuning)

        await self._patiently(self._check_schema)
        self._opened.push_async_callback(services.listener.stop)
        await self._patiently(services.listener.start)  # measures the database's clock, too
        await self._patiently(services.janitor.rescue)
        await self._patiently(services.snapshot.run_once)
        # Last: what emit() accepts changes only for a daemon that can run.
        await self._patiently(lambda: publish(self.database, default))
        await self._patiently(lambda: tell_of_overruled(self.database, config, dialects))
        self._reloader = Reloader(
            config,
            services=services,
            database=self.database,
            clients=self._clients,
            metrics=self.metrics,
            clock=self.clock,
        )
        self._watch = ClaimLoopWatch(
            services, self.database, self._notifier, self.clock, self._tuning.claim_loop_stale_s
        )
        watch = None if self._notifier.watchdog_interval is None else self._watch.run
        listed = running_services(services, config.delivery.concurrency, watch)
        self.running = Running(listed, services.supervisor)
        self.started.set()
        self._notifier.ready()
        log.info("daemon.started", version=__version__, daemon=services.ledger.owner)

    async def stop(self) -> None:
        """Stop claiming, let requests under way finish within the grace, record them, give back the rest."""
        self._notifier.stopping()
        if not self.started.is_set():
            await self._opened.aclose()
            return
        lanes = self.services.lanes
        log.info("daemon.stopping", in_flight=lanes.running, queued=lanes.queued)
        await self.running.stop(StopPhase.TAKING_ON)
        self.services.keeper.close()
        unfinished = await self._drain(self.config.delivery.drain_timeout)
        await self.running.stop(StopPhase.SENDING)
        await self.running.stop(StopPhase.RECORDING)
        await self.running.stop(StopPhase.LOOKING_ON)
        released = 0
        try:
            await self._write_what_is_left()
            left = await self._leave()
            released = left.events + left.deliveries
        except DatabaseError as error:
            away = isinstance(error, DatabaseUnavailable)
            reason = "the database is away" if away else error.message
            log.warning("daemon.unreleased", reason=f"{reason}; the next daemon rescues the claims")
        finally:
            self._failures.flush()
            await self._opened.aclose()
        log.info("daemon.stopped", cut_off=unfinished, released=released)

    async def reload(self, config: Config) -> None:
        """Take over a new configuration: all of it, or PostriderError and nothing has changed."""
        await self._reloader.reload(config)

    def turning(self) -> bool:
        """Whether the claim loop turns, or waits for a database that is away."""
        return not self.started.is_set() or self._watch.turning()

    async def readiness(self) -> Readiness:
        if not self.started.is_set():
            return Readiness(False, self._schema_checked, False)
        return await ask_readiness(self.database, self._schema, listening=self.services.listener.up)

    async def _check_schema(self) -> None:
        async with self.database.connection() as connection:
            await check_schema(connection, self._schema)
        self._schema_checked = True

    async def _patiently(self, call: Callable[[], Coroutine[object, object, T]]) -> T:
        """Call again and again while the database is away."""
        said = False
        while True:
            try:
                return await call()
            except DatabaseUnavailable as error:
                if not said:
                    log.error("database.awaited", reason=error.message)
                    said = True
                await self.clock.sleep(self._tuning.start_retry_s)

    async def _drain(self, grace: float) -> int:
        """Wait for requests under way; return how many had to be cut off."""
        lanes = self.services.lanes
        deadline = self.clock.monotonic() + grace
        while lanes.running and self.clock.monotonic() < deadline:
            await self.clock.sleep(self._tuning.drain_look_s)
        return lanes.running

    async def _write_what_is_left(self) -> None:
        services = self.services
        while not services.recorder.empty:
            await services.recorder.run_once()
        await services.disabler.run_once()
        while (await services.last_deliveries.run_once()).written:
            pass

    async def _leave(self) -> Freed:
        async with self.database.transaction() as connection:
            return await leave(connection, self.services.ledger.owner, self.clock.now())

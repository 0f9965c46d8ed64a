"""The daemon: composes the services, starts them, and stops them so that nothing is lost or doubled."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import structlog

from postrider import __version__
from postrider.domain.dialects import Dialect
from postrider.domain.errors import PostriderError
from postrider.domain.model import DeliveryState
from postrider.domain.promises import overruled
from postrider.domain.sealing import Sealer
from postrider.edges.clock import DatabaseClock, SharedClock, SystemClock
from postrider.edges.config import Config
from postrider.edges.dialect_files import default_dialect, load_dialects
from postrider.edges.dialing import BlockedAddressError
from postrider.edges.log import set_log_level
from postrider.edges.metrics import Metrics
from postrider.edges.network import WebhookClient
from postrider.edges.resources import sql_dir
from postrider.edges.settings import network_options, read_sealer, retry_settings
from postrider.edges.systemd import Notifier
from postrider.engine.chronicler import Chronicler
from postrider.engine.dialect_rules import DialectRules
from postrider.engine.dispatcher import Dispatcher
from postrider.engine.endpoints import EndpointSnapshot
from postrider.engine.failures import Failures
from postrider.engine.health import Health
from postrider.engine.janitor import Janitor
from postrider.engine.lane_changes import LaneChanges
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Ledger
from postrider.engine.listener import Listener
from postrider.engine.partitions import PartitionKeeper, Retention
from postrider.engine.recorder import Recorder
from postrider.engine.recoverer import Recoverer
from postrider.engine.reporter import Reporter
from postrider.engine.scheduler import Scheduler
from postrider.engine.schema_watch import SchemaWatch
from postrider.engine.secret_sealer import SecretSealer
from postrider.engine.sender import Sender, SendSettings
from postrider.engine.signals import Signal
from postrider.engine.supervisor import Supervisor
from postrider.store.captures import Captures
from postrider.store.catalogue import CatalogueStore
from postrider.store.daemons import Daemons
from postrider.store.database import Database, DatabaseError, DatabaseUnavailable
from postrider.store.deliveries import Deliveries
from postrider.store.endpoints import Endpoints
from postrider.store.last_deliveries import LastDeliveries
from postrider.store.migrations import check_schema, read_migrations
from postrider.store.outbox import Outbox
from postrider.store.partitions import Partitions
from postrider.store.status import Status

LANE_CAPACITY = 8192
"""Deliveries in memory that wait for a slot; the rest of a backlog stays in the database."""
START_RETRY_S = 0.5
CLAIM_LOOP_STALE_S = 10.0
"""A claim loop that has not turned for so long hangs; /healthz and the watchdog say so."""

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Readiness:
    database: bool
    schema: bool
    listener: bool

    @property
    def ready(self) -> bool:
        return self.database and self.schema and self.listener


def _fixed_at_start(started: Config, wanted: Config) -> list[str]:
    """What of the wanted configuration only a restart brings, whatever was reloaded in between."""
    return [
        name
        for name, before, after in (
            ("database.dsn", started.database.dsn, wanted.database.dsn),
            ("database.pool_size", started.database.pool_size, wanted.database.pool_size),
            ("admin", started.admin, wanted.admin),
            ("delivery.concurrency", started.delivery.concurrency, wanted.delivery.concurrency),
            (
                "delivery.endpoint_concurrency",
                started.delivery.endpoint_concurrency,
                wanted.delivery.endpoint_concurrency,
            ),
            ("log.format", started.log.format, wanted.log.format),
        )
        if before != after
    ]


class Daemon:
    """`start`, then `stop`; between them `reload` as often as you like."""

    def __init__(
        self, config: Config, *, clock: SharedClock | None = None, notifier: Notifier | None = None
    ) -> None:
        self.config = config
        self._started_with = config
        self._host_clock = clock or SystemClock()
        self.clock = clock or DatabaseClock(self._host_clock)
        self.metrics = Metrics(__version__)
        self._failures = Failures(self.clock)
        self._notifier = notifier or Notifier()
        self._migrations = read_migrations(sql_dir())
        self._schema_checked = False
        self._clients: list[WebhookClient] = []
        self._opened = AsyncExitStack()
        self._reloading = asyncio.Lock()
        self.started = asyncio.Event()

    async def start(self) -> None:
        """Connect, check the schema, rescue what a dead daemon left, and start the services.

        Waits for a database that is away; raises PostriderError for what waiting can't mend.
        """
        config = self.config
        sealer = read_sealer(config)
        dialects = load_dialects(config.dialect.paths, config.dialect.values)
        spoken = default_dialect(dialects, config.dialect.default)
        self.database = Database(
            config.database.dsn, pool_size=config.database.pool_size, synchronous_commit=False
        )
        await self._patiently(self.database.open)
        self._opened.push_async_callback(self.database.close)
        self._opened.push_async_callback(self._close_clients)

        settings = SendSettings(
            await self._open_client(config), dialects, config.delivery.user_agent, config.network.https_only
        )
        self._compose(settings, sealer)

        await self._patiently(self._check_schema)
        self._opened.push_async_callback(self.listener.stop)
        await self._patiently(self.listener.start)  # measures the database's clock, too
        await self._patiently(self.janitor.rescue)
        await self._patiently(self.endpoints.run_once)
        # Last: what emit() accepts changes only for a daemon that can run.
        self._catalogue = CatalogueStore(self.database)
        await self._patiently(lambda: self._catalogue.publish(spoken))
        await self._patiently(lambda: self._tell_of_overruled(config, dialects))
        self._start_services()
        self.started.set()
        self._notifier.ready()
        log.info("daemon.started", version=__version__, daemon=self.ledger.owner)

    def _compose(self, settings: SendSettings, sealer: Sealer) -> None:
        """Make the services, and tie them together."""
        config, clock, metrics = self.config, self.clock, self.metrics
        self.outbox = Outbox(self.database)
        deliveries = Deliveries(self.database)
        self._endpoints = endpoints = Endpoints(self.database, sealer)
        self._daemons = Daemons(self.database)
        self.ledger = Ledger()
        self.lanes = Lanes(
            capacity=LANE_CAPACITY,
            concurrency=config.delivery.concurrency,
            endpoint_concurrency=config.delivery.endpoint_concurrency,
            ledger=self.ledger,
            clock=clock,
        )
        self.recorder = Recorder(
            deliveries=deliveries,
            ledger=self.ledger,
            clock=clock,
            metrics=metrics,
            failures=self._failures,
        )
        self._rules = DialectRules(settings.dialects, retry_settings(config))
        self._endpoints_changed, endpoints_read_anew = Signal(), Signal()
        self.endpoints = EndpointSnapshot(
            database=self.database,
            sealer=sealer,
            rules=self._rules,
            changed=self._endpoints_changed,
            on_change=LaneChanges(self.lanes, self.recorder),
            read_anew=endpoints_read_anew,
            clock=clock,
        )
        self.secret_sealer = SecretSealer(
            database=self.database, sealer=sealer, due=endpoints_read_anew, clock=clock
        )
        self.sender = Sender(
            settings=settings,
            rules=self._rules,
            lanes=self.lanes,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=clock,
            signing_clock=self._host_clock,
            metrics=metrics,
        )
        self.scheduler = Scheduler(
            deliveries=deliveries,
            outbox=self.outbox,
            endpoints=endpoints,
            lanes=self.lanes,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=clock,
        )
        self.dispatcher = Dispatcher(
            outbox=self.outbox,
            deliveries=deliveries,
            daemons=self._daemons,
            endpoints=self.endpoints,
            rules=self._rules,
            lanes=self.lanes,
            recorder=self.recorder,
            ledger=self.ledger,
            clock=clock,
            notify=config.database.notify,
        )
        self.health = Health(endpoints=endpoints, policy_of=self._rules.retry_policy, clock=clock)
        self.chronicler = Chronicler(last_deliveries=LastDeliveries(self.database), clock=clock)
        self.lanes.on_return = lambda job: self.recorder.put(job, DeliveryState.WAITING)
        self.recorder.on_waiting = self.scheduler.waiting
        self.recorder.on_retrying = self.scheduler.retry_at
        self.recorder.on_outcome = self.health.note
        self.recorder.on_attempt = self.chronicler.note
        self.recorder.on_lost = self.dispatcher.doubt
        captures = Captures(self.database)
        partitions = Partitions(self.database)
        self.partition_keeper = PartitionKeeper(
            partitions=partitions,
            captures=captures,
            retention=Retention(config.retention.events, config.retention.attempts),
            clock=clock,
        )
        self.janitor = Janitor(
            daemons=self._daemons,
            captures=captures,
            ledger=self.ledger,
            clock=clock,
            on_rescued=self._look_again,
        )
        self.recoverer = Recoverer(captures=captures, clock=clock)
        self.listener = Listener(
            database=self.database,
            daemons=self._daemons,
            ledger=self.ledger,
            channels={
                "postrider_wake": self.dispatcher.wake,
                "postrider_endpoints": self._endpoints_changed.set,
                "postrider_deliveries": self.scheduler.rescan,
            },
            version=__version__,
            schema=len(self._migrations),
            pooled=self.database.pooled,
            clock=clock,
            metrics=metrics,
            on_reconnected=self._in_doubt,
            on_identity_lost=self.lanes.clear,
        )
        self.reporter = Reporter(
            outbox=self.outbox,
            captures=captures,
            status=Status(self.database),
            partitions=partitions,
            daemons=self._daemons,
            ledger=self.ledger,
            lanes=self.lanes,
            endpoints=self.endpoints,
            slots=config.delivery.concurrency,
            clock=clock,
            metrics=metrics,
            notifier=self._notifier,
        )
        self.schema_watch = SchemaWatch(database=self.database, migrations=self._migrations, clock=clock)
        self._supervisor = Supervisor(
            database=self.database, clock=clock, metrics=metrics, on_failure=self.schema_watch.wake
        )

    def _start_services(self) -> None:
        concurrency = self.config.delivery.concurrency
        # What consumes starts before what produces; stop() goes the other way.
        self._supervisor.start("failures", self._failures.run)
        self._supervisor.start("recorder", self.recorder.run)
        self._supervisor.start("sender", lambda: self.sender.run(concurrency))
        self._supervisor.start("lanes", self.lanes.run)
        self._supervisor.start("health", self.health.run)
        self._supervisor.start("chronicler", self.chronicler.run)
        self._supervisor.start("scheduler", self.scheduler.run)
        self._supervisor.start("dispatcher", self.dispatcher.run)
        self._supervisor.start("endpoints", self.endpoints.run)
        self._supervisor.start("secret sealer", self.secret_sealer.run)
        self._supervisor.start("listener", self.listener.run)
        self._supervisor.start("janitor", self.janitor.run)
        self._supervisor.start("recoverer", self.recoverer.run)
        self._supervisor.start("partitions", self.partition_keeper.run)
        self._supervisor.start("reporter", self.reporter.run)
        self._supervisor.start("schema watch", self.schema_watch.run)
        if self._notifier.watchdog_interval is not None:
            self._supervisor.start("watchdog", self._watch)

    async def stop(self) -> None:
        """Stop claiming, let requests under way finish within the grace, record them, give back the rest."""
        self._notifier.stopping()
        if not self.started.is_set():
            await self._opened.aclose()
            return
        log.info("daemon.stopping", in_flight=self.lanes.running, queued=self.lanes.queued)
        await self._supervisor.stop(
            "dispatcher",
            "scheduler",
            "endpoints",
            "secret sealer",
            "janitor",
            "recoverer",
            "partitions",
            "schema watch",
            "health",
            "chronicler",
            "lanes",
        )
        self.lanes.close()
        unfinished = await self._drain(self.config.delivery.drain_timeout)
        await self._supervisor.stop("sender", "recorder", "failures", "reporter", "listener", "watchdog")
        released = 0
        try:
            while not self.recorder.empty:
                await self.recorder.run_once()
            await self.health.run_once()
            while await self.chronicler.run_once():
                pass
            left = await self._daemons.leave(self.ledger.owner, self.clock.now())
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
        """Take over a new configuration: all of it, or PostriderError and nothing has changed.

        What can fail comes first; the catalogue, which the CRM's transactions see, after that; memory last.
        """
        async with self._reloading:
            before = self.sender.settings
            timeout_s = max(
                self.config.delivery.timeout, *(each.timeout or 0.0 for each in before.dialects.values())
            )
            await self._reload(config)
        await self.clock.wait(asyncio.Event(), timeout_s + 1.0)  # its requests have ended by then
        await self._close_client(before.client)

    async def _reload(self, config: Config) -> None:
        dialects = load_dialects(config.dialect.paths, config.dialect.values)
        spoken = default_dialect(dialects, config.dialect.default)
        sealer = read_sealer(config)
        retention = Retention(config.retention.events, config.retention.attempts)
        retry = retry_settings(config)
        client = await self._open_client(config)
        try:
            await self._tell_of_overruled(config, dialects)
            await self._catalogue.publish(spoken)
        except BaseException:
            await self._close_client(client)
            raise
        self.config = config
        self._endpoints.sealer = sealer
        self._rules.configure(dialects, retry)
        self.endpoints.configure(sealer)
        self.secret_sealer.sealer = sealer
        self.sender.settings = SendSettings(
            client, dialects, config.delivery.user_agent, config.network.https_only
        )
        self.dispatcher.configure(config.database.notify)
        self.partition_keeper.retention = retention
        set_log_level(config.log.level)
        fixed = _fixed_at_start(self._started_with, config)
        self.metrics.restart_due.set(bool(fixed))
        log.info("config.reloaded", needs_restart=fixed)

    def turning(self) -> bool:
        """Whether the claim loop turns, or waits for a database that is away."""
        if not self.started.is_set() or not self.database.available:
            return True
        return self.clock.monotonic() - self.dispatcher.turned_at < CLAIM_LOOP_STALE_S

    async def readiness(self) -> Readiness:
        """Ask the database, not memory."""
        if not self.started.is_set():
            return Readiness(False, self._schema_checked, False)
        try:
            async with self.database.connection() as connection:
                await check_schema(connection, self._migrations)
        except DatabaseUnavailable:
            return Readiness(False, self._schema_checked, self.listener.up)
        except PostriderError:
            return Readiness(True, False, self.listener.up)
        return Readiness(True, True, self.listener.up)

    async def _check_schema(self) -> None:
        async with self.database.connection() as connection:
            await check_schema(connection, self._migrations)
        self._schema_checked = True

    async def _tell_of_overruled(self, config: Config, dialects: Mapping[str, Dialect]) -> None:
        """Say which keys have no effect on endpoints, because what their dialect promises goes first."""
        spoken = {config.dialect.default, *await self._endpoints.dialects()}
        for name in sorted(spoken & dialects.keys()):
            for key in overruled(dialects[name], retry_settings(config)):
                log.warning(
                    "config.overruled", dialect=name, key=key, reason="the dialect promises its schedule"
                )

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
                await asyncio.sleep(START_RETRY_S)

    async def _open_client(self, config: Config) -> WebhookClient:
        client = WebhookClient(network_options(config), on_blocked=self._note_blocked)
        await client.__aenter__()
        self._clients.append(client)
        return client

    async def _close_client(self, client: WebhookClient) -> None:
        if client in self._clients:
            self._clients.remove(client)
            await client.__aexit__(None, None, None)

    async def _close_clients(self) -> None:
        for client in list(self._clients):
            await self._close_client(client)

    def _note_blocked(self, error: BlockedAddressError) -> None:
        """The delivery's reason names no inner address; this is for the operator."""
        self.metrics.blocked.labels(error.verdict.value).inc()
        self._failures.blocked(error)

    def _look_again(self) -> None:
        """Rows may have been freed."""
        self.outbox.look_at_all()
        self.dispatcher.wake()
        self.scheduler.rescan()

    def _in_doubt(self) -> None:
        """The connection was lost, and with it perhaps an answer."""
        self.dispatcher.doubt()
        self.scheduler.doubt()
        self._endpoints_changed.set()

    async def _drain(self, grace: float) -> int:
        """Wait for requests under way; return how many had to be cut off."""
        deadline = self.clock.monotonic() + grace
        never = asyncio.Event()
        while self.lanes.running and self.clock.monotonic() < deadline:
            await self.clock.wait(never, 0.02)
        return self.lanes.running

    async def _watch(self) -> None:
        """Tell systemd that the claim loop turns."""
        never = asyncio.Event()
        interval = self._notifier.watchdog_interval
        while True:
            if self.turning():
                self._notifier.watchdog()
            await self.clock.wait(never, interval)

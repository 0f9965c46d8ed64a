"""The daemon: composes the services, starts them, and stops them so that nothing is lost or doubled."""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from postrider import __version__
from postrider.domain.dialects import Dialect
from postrider.domain.errors import PostriderError
from postrider.domain.policy import RetryPolicy
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
from postrider.engine.dispatcher import Dispatcher, DispatcherTuning
from postrider.engine.failures import Failures
from postrider.engine.fan_outs import FanOuts, FanOutTuning
from postrider.engine.health import Health
from postrider.engine.janitor import Janitor
from postrider.engine.lane_keeper import KeeperTuning, LaneKeeper
from postrider.engine.lane_room import LanesTuning
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Ledger, LedgerTuning
from postrider.engine.listener import Listener
from postrider.engine.partitions import PartitionKeeper, Retention
from postrider.engine.recorded import LeftWaiting
from postrider.engine.recorder import Readers, Recorder, RecorderTuning
from postrider.engine.recoverer import Recoverer
from postrider.engine.reporter import Reporter
from postrider.engine.scheduler import Scheduler, SchedulerTuning
from postrider.engine.schema_watch import SchemaWatch
from postrider.engine.sender import Sender, SenderTuning, SendSettings
from postrider.engine.signals import EngineSignals
from postrider.engine.subscriptions import Subscriptions
from postrider.engine.supervisor import Supervisor
from postrider.store.captures import Captures
from postrider.store.catalogue import CatalogueStore
from postrider.store.daemons import Daemons
from postrider.store.database import Database, DatabaseError, DatabaseUnavailable
from postrider.store.endpoints import Endpoints
from postrider.store.last_deliveries import LastDeliveries
from postrider.store.migrations import check_schema, read_migrations
from postrider.store.outbox import Outbox, Pending
from postrider.store.partitions import Partitions
from postrider.store.status import Status

START_RETRY_S = 0.5
CLAIM_LOOP_STALE_S = 10.0
"""A claim loop that has not turned for so long hangs; /healthz and the watchdog say so."""

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the configuration leaves to the program."""

    ledger: LedgerTuning = field(default_factory=LedgerTuning)
    lanes: LanesTuning = field(default_factory=LanesTuning)
    keeper: KeeperTuning = field(default_factory=KeeperTuning)
    recorder: RecorderTuning = field(default_factory=RecorderTuning)
    sender: SenderTuning = field(default_factory=SenderTuning)
    fan_outs: FanOutTuning = field(default_factory=FanOutTuning)
    dispatcher: DispatcherTuning = field(default_factory=DispatcherTuning)
    scheduler: SchedulerTuning = field(default_factory=SchedulerTuning)


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
        self,
        config: Config,
        *,
        clock: SharedClock | None = None,
        notifier: Notifier | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self.config = config
        self._tuning = tuning or Tuning()
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
        await self._patiently(self.subscriptions.run_once)
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
        config, clock, metrics, tuning = self.config, self.clock, self.metrics, self._tuning
        self.signals = signals = EngineSignals()
        left_waiting = LeftWaiting(signals.schedule)
        self._pending = Pending(clock.monotonic, lambda: secrets.randbits(63))
        self._endpoints = endpoints = Endpoints(self.database, sealer)
        self._daemons = Daemons(self.database)
        self.ledger = Ledger(tuning.ledger)
        self.lanes = Lanes(
            tuning.lanes,
            concurrency=config.delivery.concurrency,
            endpoint_concurrency=config.delivery.endpoint_concurrency,
            ledger=self.ledger,
        )
        self.health = Health(endpoints=endpoints, policy_of=self._policy_of, clock=clock)
        self.chronicler = Chronicler(last_deliveries=LastDeliveries(self.database), clock=clock)
        self.recorder = Recorder(
            tuning.recorder,
            database=self.database,
            ledger=self.ledger,
            clock=clock,
            metrics=metrics,
            failures=self._failures,
            readers=Readers(
                waiting=left_waiting,
                health=self.health,
                last_deliveries=self.chronicler,
                doubt=signals.events_doubt,
            ),
        )
        self.keeper = LaneKeeper(
            tuning.keeper,
            lanes=self.lanes,
            recorder=self.recorder,
            room=signals.dispatch,
            refill=signals.schedule,
            clock=clock,
        )
        retry = retry_settings(config)
        self.subscriptions = Subscriptions(
            endpoints=endpoints,
            keeper=self.keeper,
            dialects=settings.dialects,
            retry=retry,
            clock=clock,
        )
        self.sender = Sender(
            tuning.sender,
            settings=settings,
            subscriptions=self.subscriptions,
            lanes=self.lanes,
            keeper=self.keeper,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=clock,
            signing_clock=self._host_clock,
            metrics=metrics,
        )
        self.scheduler = Scheduler(
            tuning.scheduler,
            database=self.database,
            endpoints=endpoints,
            lanes=self.lanes,
            keeper=self.keeper,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=clock,
            left_waiting=left_waiting,
            wake=signals.schedule,
            rescan=signals.rescan,
            doubt=signals.deliveries_doubt,
        )
        fan_outs = FanOuts(
            tuning.fan_outs,
            database=self.database,
            subscriptions=self.subscriptions,
            lanes=self.lanes,
            keeper=self.keeper,
            recorder=self.recorder,
            ledger=self.ledger,
            clock=clock,
            wake=signals.dispatch,
            doubt=signals.events_doubt,
        )
        self.dispatcher = Dispatcher(
            tuning.dispatcher,
            database=self.database,
            pending=self._pending,
            daemons=self._daemons,
            subscriptions=self.subscriptions,
            lanes=self.lanes,
            fan_outs=fan_outs,
            recorder=self.recorder,
            ledger=self.ledger,
            clock=clock,
            notify=config.database.notify,
            wake=signals.dispatch,
            doubt=signals.events_doubt,
        )
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
                "postrider_wake": signals.dispatch.set,
                "postrider_endpoints": self.subscriptions.wake,
                "postrider_deliveries": signals.rescan.set,
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
            outbox=Outbox(self.database),
            captures=captures,
            status=Status(self.database),
            partitions=partitions,
            daemons=self._daemons,
            ledger=self.ledger,
            lanes=self.lanes,
            subscriptions=self.subscriptions,
            slots=config.delivery.concurrency,
            clock=clock,
            metrics=metrics,
            notifier=self._notifier,
        )
        self.schema_watch = SchemaWatch(database=self.database, migrations=self._migrations, clock=clock)
        self._supervisor = Supervisor(
            database=self.database, clock=clock, metrics=metrics, on_failure=self.schema_watch.wake
        )

    def _policy_of(self, dialect: str) -> RetryPolicy:
        return self.subscriptions.policy_of(dialect)

    def _start_services(self) -> None:
        concurrency = self.config.delivery.concurrency
        # What consumes starts before what produces; stop() goes the other way.
        self._supervisor.start("failures", self._failures.run)
        self._supervisor.start("recorder", self.recorder.run)
        self._supervisor.start("sender", lambda: self.sender.run(concurrency))
        self._supervisor.start("lanes", self.keeper.run)
        self._supervisor.start("health", self.health.run)
        self._supervisor.start("chronicler", self.chronicler.run)
        self._supervisor.start("scheduler", self.scheduler.run)
        self._supervisor.start("dispatcher", self.dispatcher.run)
        self._supervisor.start("subscriptions", self.subscriptions.run)
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
            "subscriptions",
            "janitor",
            "recoverer",
            "partitions",
            "schema watch",
            "health",
            "chronicler",
            "lanes",
        )
        self.keeper.close()
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
        self.subscriptions.configure(dialects, retry)
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
        self._pending.look_at_all()
        self.signals.dispatch.set()
        self.signals.rescan.set()

    def _in_doubt(self) -> None:
        """The connection was lost, and with it perhaps an answer."""
        self.signals.events_doubt.set()
        self.signals.deliveries_doubt.set()
        self.subscriptions.wake()

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

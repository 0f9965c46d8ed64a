"""Makes the services of a daemon, and ties them together: signals and note books first, then both of
their ends.

What a service needs its constructor demands, so one that lacks something does not start.
"""

from dataclasses import dataclass

from postrider import __version__
from postrider.app.tuning import Tuning
from postrider.domain.sealing import Sealer
from postrider.edges.clock import Clock, SharedClock
from postrider.edges.config import Config
from postrider.edges.metrics import Metrics
from postrider.edges.settings import retry_settings
from postrider.edges.systemd import Notifier
from postrider.engine.disabler import Disabler, OutcomeBook
from postrider.engine.dispatcher import Dispatcher
from postrider.engine.failures import Failures
from postrider.engine.identity import Identity
from postrider.engine.janitor import Janitor
from postrider.engine.lanes import Lanes
from postrider.engine.last_deliveries import LastDeliveryBook, LastDeliveryKeeper
from postrider.engine.ledger import Ledger
from postrider.engine.listener import Listener
from postrider.engine.partitions import PartitionKeeper, Retention
from postrider.engine.recorded import LeftWaiting
from postrider.engine.recorder import Recorder
from postrider.engine.recoverer import Recoverer
from postrider.engine.reporter import Reporter
from postrider.engine.scheduler import Scheduler
from postrider.engine.schema_watch import SchemaWatch
from postrider.engine.sender import Sender, SendSettings
from postrider.engine.signals import Signal
from postrider.engine.subscriptions import Subscriptions
from postrider.engine.supervisor import Supervisor
from postrider.store.database import Database
from postrider.store.deliveries import Deliveries
from postrider.store.endpoint_changes import Endpoints
from postrider.store.migrations import Schema
from postrider.store.outbox import Outbox


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the services find there."""

    database: Database
    schema: Schema
    """Those of the program."""
    clock: SharedClock
    signing_clock: Clock
    """This host's own, since receivers compare signatures with theirs."""
    metrics: Metrics
    notifier: Notifier
    failures: Failures


@dataclass(frozen=True, slots=True)
class Signals:
    """Back, against the flow of events."""

    events: Signal
    """There may be new events, or room for more."""
    claims_in_doubt: Signal
    """Memory and database may differ about claims of events, or some came back to be claimed."""
    work: Signal
    """The scheduler may have something to do."""
    waiting: Signal
    """Deliveries may wait in the database that nobody announced."""
    deliveries_in_doubt: Signal
    """Memory and database may differ about claimed deliveries."""
    endpoints: Signal
    """Endpoints may have changed."""
    failed: Signal
    """A service failed, and not for want of the database."""


@dataclass(frozen=True, slots=True)
class Services:
    signals: Signals
    ledger: Ledger
    lanes: Lanes
    endpoints: Endpoints
    failures: Failures
    recorder: Recorder
    subscriptions: Subscriptions
    sender: Sender
    scheduler: Scheduler
    dispatcher: Dispatcher
    disabler: Disabler
    last_deliveries: LastDeliveryKeeper
    partitions: PartitionKeeper
    janitor: Janitor
    recoverer: Recoverer
    listener: Listener
    reporter: Reporter
    schema_watch: SchemaWatch
    supervisor: Supervisor


def compose(
    config: Config, around: Surroundings, settings: SendSettings, sealer: Sealer, tuning: Tuning
) -> Services:
    database, clock, metrics = around.database, around.clock, around.metrics
    signals = _signals()
    left_waiting = LeftWaiting(signals.work)
    outcomes, last_deliveries = OutcomeBook(), LastDeliveryBook()

    outbox, deliveries = Outbox(database), Deliveries(database)
    endpoints = Endpoints(database, sealer)
    ledger = Ledger()
    lanes = Lanes(
        capacity=tuning.lane_capacity,
        concurrency=config.delivery.concurrency,
        endpoint_concurrency=config.delivery.endpoint_concurrency,
        ledger=ledger,
        clock=clock,
    )
    recorder = Recorder(
        deliveries=deliveries,
        ledger=ledger,
        left_waiting=left_waiting,
        readers=(outcomes, last_deliveries),
        doubt=signals.claims_in_doubt,
        clock=clock,
        metrics=metrics,
        failures=around.failures,
    )
    subscriptions = Subscriptions(
        endpoints=endpoints,
        lanes=lanes,
        recorder=recorder,
        dialects=settings.dialects,
        retry=retry_settings(config),
        wake=signals.endpoints,
        clock=clock,
    )
    return Services(
        signals=signals,
        ledger=ledger,
        lanes=lanes,
        endpoints=endpoints,
        failures=around.failures,
        recorder=recorder,
        subscriptions=subscriptions,
        sender=Sender(
            settings=settings,
            subscriptions=subscriptions,
            lanes=lanes,
            ledger=ledger,
            recorder=recorder,
            clock=clock,
            signing_clock=around.signing_clock,
            metrics=metrics,
        ),
        scheduler=Scheduler(
            deliveries=deliveries,
            outbox=outbox,
            database=database,
            lanes=lanes,
            ledger=ledger,
            recorder=recorder,
            left_waiting=left_waiting,
            rescan=signals.waiting,
            doubt=signals.deliveries_in_doubt,
            wake=signals.work,
            clock=clock,
        ),
        dispatcher=Dispatcher(
            outbox=outbox,
            deliveries=deliveries,
            database=database,
            subscriptions=subscriptions,
            lanes=lanes,
            recorder=recorder,
            ledger=ledger,
            wake=signals.events,
            doubt=signals.claims_in_doubt,
            clock=clock,
            notify=config.database.notify,
        ),
        disabler=Disabler(
            database=database,
            book=outcomes,
            policy_of=subscriptions.policy_of,
            clock=clock,
            tuning=tuning.disabler,
        ),
        last_deliveries=LastDeliveryKeeper(
            database=database, book=last_deliveries, clock=clock, tuning=tuning.last_deliveries
        ),
        partitions=PartitionKeeper(
            database=database,
            retention=Retention(config.retention.events, config.retention.attempts),
            clock=clock,
            tuning=tuning.partitions,
        ),
        janitor=Janitor(
            database=database,
            ledger=ledger,
            freed=(signals.claims_in_doubt, signals.waiting),
            clock=clock,
            tuning=tuning.janitor,
        ),
        recoverer=Recoverer(database=database, clock=clock, tuning=tuning.recoverer),
        listener=Listener(
            database=database,
            identity=Identity(
                application_name=database.application_name,
                version=__version__,
                schema=around.schema.number,
                pooled=database.pooled,
            ),
            ledger=ledger,
            lanes=lanes,
            channels={
                "postrider_wake": signals.events,
                "postrider_endpoints": signals.endpoints,
                "postrider_deliveries": signals.waiting,
            },
            reconnected=(signals.claims_in_doubt, signals.deliveries_in_doubt, signals.endpoints),
            clock=clock,
            metrics=metrics,
            tuning=tuning.listener,
        ),
        reporter=Reporter(
            database=database,
            outbox=outbox,
            ledger=ledger,
            lanes=lanes,
            subscriptions=subscriptions,
            slots=config.delivery.concurrency,
            clock=clock,
            metrics=metrics,
            notifier=around.notifier,
            tuning=tuning.reporter,
        ),
        schema_watch=SchemaWatch(
            database=database,
            schema=around.schema,
            wake=signals.failed,
            clock=clock,
            tuning=tuning.schema_watch,
        ),
        supervisor=Supervisor(
            database=database,
            clock=clock,
            metrics=metrics,
            failed=signals.failed,
            tuning=tuning.supervisor,
        ),
    )


def _signals() -> Signals:
    events, work = Signal(), Signal()
    return Signals(
        events=events,
        claims_in_doubt=Signal(events),
        work=work,
        waiting=Signal(work),
        deliveries_in_doubt=Signal(work),
        endpoints=Signal(),
        failed=Signal(),
    )

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
from postrider.edges.randomness import random_id
from postrider.edges.settings import retry_settings
from postrider.edges.systemd import Notifier
from postrider.engine.dialect_rules import DialectRules
from postrider.engine.disabler import Disabler, OutcomeBook
from postrider.engine.dispatcher import Dispatcher
from postrider.engine.endpoints import EndpointSnapshot
from postrider.engine.failures import Failures
from postrider.engine.fan_outs import FanOuts
from postrider.engine.identity import Identity
from postrider.engine.janitor import Janitor
from postrider.engine.lane_keeper import LaneKeeper
from postrider.engine.lanes import Lanes
from postrider.engine.last_deliveries import LastDeliveryBook, LastDeliveryKeeper
from postrider.engine.ledger import Ledger
from postrider.engine.listener import Listener
from postrider.engine.partitions import PartitionKeeper, Retention
from postrider.engine.recorded import LeftWaiting
from postrider.engine.recorder import Readers, Recorder
from postrider.engine.recoverer import Recoverer
from postrider.engine.reporter import Reporter
from postrider.engine.scheduler import Scheduler
from postrider.engine.schema_watch import SchemaWatch
from postrider.engine.secret_sealer import SecretSealer
from postrider.engine.sender import Sender, SendSettings
from postrider.engine.signals import EngineSignals
from postrider.engine.supervisor import Supervisor
from postrider.store.database import Database
from postrider.store.migrations import Schema
from postrider.store.outbox import Pending


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
class Services:
    signals: EngineSignals
    ledger: Ledger
    lanes: Lanes
    keeper: LaneKeeper
    failures: Failures
    recorder: Recorder
    rules: DialectRules
    snapshot: EndpointSnapshot
    secret_sealer: SecretSealer
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
    signals = EngineSignals()
    left_waiting = LeftWaiting(signals.schedule)
    outcomes, last_deliveries = OutcomeBook(), LastDeliveryBook()

    ledger = Ledger(tuning.ledger)
    lanes = Lanes(
        tuning.lanes,
        concurrency=config.delivery.concurrency,
        endpoint_concurrency=config.delivery.endpoint_concurrency,
        ledger=ledger,
    )
    recorder = Recorder(
        tuning.recorder,
        database=database,
        ledger=ledger,
        clock=clock,
        metrics=metrics,
        failures=around.failures,
        readers=Readers(
            waiting=left_waiting,
            outcomes=outcomes,
            last_deliveries=last_deliveries,
            doubt=signals.events_doubt,
        ),
    )
    keeper = LaneKeeper(
        tuning.keeper,
        lanes=lanes,
        recorder=recorder,
        room=signals.dispatch,
        refill=signals.schedule,
        clock=clock,
    )
    rules = DialectRules(settings.dialects, retry_settings(config))
    snapshot = EndpointSnapshot(
        database=database,
        sealer=sealer,
        rules=rules,
        changed=signals.endpoints,
        on_change=keeper.update,
        read_anew=signals.endpoints_read_anew,
        clock=clock,
        tuning=tuning.endpoints,
    )
    fan_outs = FanOuts(
        tuning.fan_outs,
        database=database,
        rules=rules,
        lanes=lanes,
        keeper=keeper,
        recorder=recorder,
        ledger=ledger,
        clock=clock,
        wake=signals.dispatch,
        doubt=signals.events_doubt,
    )
    return Services(
        signals=signals,
        ledger=ledger,
        lanes=lanes,
        keeper=keeper,
        failures=around.failures,
        recorder=recorder,
        rules=rules,
        snapshot=snapshot,
        secret_sealer=SecretSealer(
            database=database,
            sealer=sealer,
            due=signals.endpoints_read_anew,
            clock=clock,
            tuning=tuning.secret_sealer,
        ),
        sender=Sender(
            tuning.sender,
            settings=settings,
            rules=rules,
            lanes=lanes,
            keeper=keeper,
            ledger=ledger,
            recorder=recorder,
            clock=clock,
            signing_clock=around.signing_clock,
            metrics=metrics,
        ),
        scheduler=Scheduler(
            tuning.scheduler,
            database=database,
            lanes=lanes,
            keeper=keeper,
            ledger=ledger,
            recorder=recorder,
            clock=clock,
            left_waiting=left_waiting,
            wake=signals.schedule,
            rescan=signals.rescan,
            doubt=signals.deliveries_doubt,
        ),
        dispatcher=Dispatcher(
            tuning.dispatcher,
            database=database,
            pending=Pending(clock.monotonic, random_id),
            endpoints=snapshot,
            lanes=lanes,
            fan_outs=fan_outs,
            recorder=recorder,
            ledger=ledger,
            clock=clock,
            notify=config.database.notify,
            wake=signals.dispatch,
            doubt=signals.events_doubt,
        ),
        disabler=Disabler(
            database=database,
            book=outcomes,
            policy_of=rules.retry_policy,
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
            freed=(signals.events_doubt, signals.rescan),
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
                "postrider_wake": signals.dispatch,
                "postrider_endpoints": signals.endpoints,
                "postrider_deliveries": signals.rescan,
            },
            reconnected=(signals.events_doubt, signals.deliveries_doubt, signals.endpoints),
            clock=clock,
            metrics=metrics,
            tuning=tuning.listener,
        ),
        reporter=Reporter(
            database=database,
            ledger=ledger,
            lanes=lanes,
            endpoints=snapshot,
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

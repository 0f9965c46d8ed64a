"""How often and how much at a time: what the configuration says nothing of, and tests may change."""

from dataclasses import dataclass, field

from postrider.engine.disabler import DisablerTuning
from postrider.engine.dispatcher import DispatcherTuning
from postrider.engine.endpoints import EndpointTuning
from postrider.engine.failures import FailuresTuning
from postrider.engine.fan_outs import FanOutTuning
from postrider.engine.janitor import JanitorTuning
from postrider.engine.lane_keeper import KeeperTuning
from postrider.engine.lane_room import LanesTuning
from postrider.engine.last_deliveries import LastDeliveryTuning
from postrider.engine.ledger import LedgerTuning
from postrider.engine.listener import ListenerTuning
from postrider.engine.partitions import PartitionTuning
from postrider.engine.recorder import RecorderTuning
from postrider.engine.recoverer import RecovererTuning
from postrider.engine.reporter import ReporterTuning
from postrider.engine.scheduler import SchedulerTuning
from postrider.engine.schema_watch import SchemaWatchTuning
from postrider.engine.secret_sealer import SecretSealerTuning
from postrider.engine.sender import SenderTuning
from postrider.engine.supervisor import SupervisorTuning


@dataclass(frozen=True, slots=True)
class Tuning:
    start_retry_s: float = 0.5
    """Between two tries to reach a database that is away at the start."""
    claim_loop_stale_s: float = 10.0
    """A claim loop that has not turned for so long hangs; /healthz and the watchdog say so."""
    drain_look_s: float = 0.02
    """Between two looks whether the last request has ended."""
    ledger: LedgerTuning = field(default_factory=LedgerTuning)
    lanes: LanesTuning = field(default_factory=LanesTuning)
    keeper: KeeperTuning = field(default_factory=KeeperTuning)
    recorder: RecorderTuning = field(default_factory=RecorderTuning)
    sender: SenderTuning = field(default_factory=SenderTuning)
    fan_outs: FanOutTuning = field(default_factory=FanOutTuning)
    dispatcher: DispatcherTuning = field(default_factory=DispatcherTuning)
    scheduler: SchedulerTuning = field(default_factory=SchedulerTuning)
    endpoints: EndpointTuning = field(default_factory=EndpointTuning)
    secret_sealer: SecretSealerTuning = field(default_factory=SecretSealerTuning)
    disabler: DisablerTuning = field(default_factory=DisablerTuning)
    failures: FailuresTuning = field(default_factory=FailuresTuning)
    janitor: JanitorTuning = field(default_factory=JanitorTuning)
    last_deliveries: LastDeliveryTuning = field(default_factory=LastDeliveryTuning)
    listener: ListenerTuning = field(default_factory=ListenerTuning)
    partitions: PartitionTuning = field(default_factory=PartitionTuning)
    recoverer: RecovererTuning = field(default_factory=RecovererTuning)
    reporter: ReporterTuning = field(default_factory=ReporterTuning)
    schema_watch: SchemaWatchTuning = field(default_factory=SchemaWatchTuning)
    supervisor: SupervisorTuning = field(default_factory=SupervisorTuning)

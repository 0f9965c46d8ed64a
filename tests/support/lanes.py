"""Lanes with their keeper and a recorder, which tell nobody."""

from dataclasses import dataclass

from postrider.edges.clock import Clock
from postrider.edges.metrics import Metrics
from postrider.engine.failures import Failures
from postrider.engine.lane_keeper import KeeperTuning, LaneKeeper
from postrider.engine.lane_room import LanesTuning
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Ledger
from postrider.engine.recorded import Recorded
from postrider.engine.recorder import Readers, Recorder, RecorderTuning
from postrider.engine.signals import EngineSignals
from postrider.store.database import Database


class Nobody:
    """Reads nothing of what was recorded."""

    def put(self, recorded: Recorded) -> None:
        """Pass over it."""


@dataclass(frozen=True, slots=True)
class KeptLanes:
    lanes: Lanes
    keeper: LaneKeeper
    recorder: Recorder
    signals: EngineSignals


def kept_lanes(
    database: Database,
    clock: Clock,
    *,
    capacity: int = 8192,
    concurrency: int = 256,
    endpoint_concurrency: int = 8,
) -> KeptLanes:
    ledger, signals = Ledger(), EngineSignals()
    lanes = Lanes(
        LanesTuning(capacity=capacity),
        concurrency=concurrency,
        endpoint_concurrency=endpoint_concurrency,
        ledger=ledger,
    )
    recorder = Recorder(
        RecorderTuning(),
        database=database,
        ledger=ledger,
        clock=clock,
        metrics=Metrics("test"),
        failures=Failures(clock),
        readers=Readers(Nobody(), Nobody(), Nobody(), signals.events_doubt),
    )
    keeper = LaneKeeper(
        KeeperTuning(),
        lanes=lanes,
        recorder=recorder,
        room=signals.dispatch,
        refill=signals.schedule,
        clock=clock,
    )
    return KeptLanes(lanes, keeper, recorder, signals)

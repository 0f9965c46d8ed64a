"""Acts on what the lanes decide: hands their jobs to workers, has recorded what they give back, logs what
became of a lane, and tells dispatcher and scheduler that there is room.

Woken by what the others do with the lanes; while requests are under way or a lane rests, it looks after the
lanes many times a second.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import structlog

from postrider.domain.model import DeliveryState, Endpoint, endpoint_public_id
from postrider.domain.policy import Outcome
from postrider.edges.clock import Clock
from postrider.engine.decisions import Decisions, LaneChange, LaneEvent
from postrider.engine.lane import Lane
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Job
from postrider.engine.loopturn import LoopTurn, LoopTurnTuning
from postrider.engine.recorder import Recorder
from postrider.engine.signals import Signal

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class KeeperTuning:
    tick_s: float = 0.05
    """Between two looks after the lanes that need it."""
    loop_turn: LoopTurnTuning = field(default_factory=LoopTurnTuning)


class LaneKeeper:
    def __init__(
        self,
        tuning: KeeperTuning,
        *,
        lanes: Lanes,
        recorder: Recorder,
        room: Signal,
        refill: Signal,
        clock: Clock,
    ) -> None:
        """`room`: what was asked for has come about; `refill`: a lane could do with what waits for it in the
        database."""
        self._tuning = tuning
        self._lanes = lanes
        self._recorder = recorder
        self._room = room
        self._refill = refill
        self._clock = clock
        self._loop_turn = LoopTurn(tuning.loop_turn, clock, self._wake_for_turn)
        self._idle_workers: deque[asyncio.Future[None]] = deque()
        self._watch = Signal()
        self._watching = False
        self._draining = False

    def __repr__(self) -> str:
        state = "draining" if self._draining else "watching" if self._watching else "still"
        return f"<LaneKeeper {state} idle_workers={len(self._idle_workers)} {self._loop_turn}>"

    async def run(self) -> None:
        """Look after the lanes that need it."""
        while True:
            await self._watch.wait(self._clock)
            await self._clock.sleep(self._tuning.tick_s)
            self.run_once()
            if not self._lanes.watched:
                self._watching = False
                self._watch.clear()

    def run_once(self) -> int:
        """Let the lanes see what time has changed; return how many there are still to look after."""
        self._act(self._lanes.tick(self._clock.monotonic()))
        self._wake_workers(1)
        return len(self._lanes.watched)

    async def take(self) -> Job | None:
        """The next job that may be sent, for a worker; None when draining is over."""
        while True:
            if self._loop_turn.admits():
                now = self._clock.monotonic()
                unproven = self._loop_turn.admits_unproven
                if (job := self._lanes.take(now, unproven=unproven)) is not None:
                    self._loop_turn.begin(now, unproven=job.unproven)
                    if not self._watching:
                        self._begin_watching()
                    if self._idle_workers and not self._loop_turn.refusing and self._with_turn():
                        self._wake_worker()
                    return job
                if not unproven and self._lanes.unproven_with_turn:
                    self._loop_turn.refuse_unproven()
            if self._draining:
                return None
            worker = asyncio.get_running_loop().create_future()
            self._idle_workers.append(worker)
            try:
                await worker
            except asyncio.CancelledError:
                if worker.done() and not worker.cancelled():
                    self._wake_worker()
                raise

    def done(self, job: Job, outcome: Outcome | None) -> None:
        """Free the slot of a job that was taken; `outcome` is None where it came to nothing.

        The worker takes again, so no other one is woken.
        """
        decided = self._lanes.done(job, outcome, self._clock.monotonic())
        if decided is not None:
            self._act(decided)

    def put_back(self, job: Job) -> None:
        """Have a job that was taken recorded as waiting."""
        self._lanes.put_back(job.endpoint_id)
        self._recorder.put(job, DeliveryState.WAITING)

    def send(self, jobs: int) -> None:
        """So many have been queued: let workers begin with them."""
        if not self._watching:
            self._begin_watching()
        if not self._loop_turn.refusing:
            self._wake_workers(jobs)

    def end_refill(self, claimed: Mapping[Lane, Sequence[Job]]) -> None:
        """Queue what was claimed for lanes that are open, perhaps nothing."""
        self._act(self._lanes.end_refill(claimed, self._clock.monotonic()))
        self.send(sum(map(len, claimed.values())))

    def update(self, changed: Sequence[Endpoint], gone: Iterable[int] = ()) -> None:
        """Let the lanes take over endpoints that are new or changed, and forget those that are `gone`."""
        self._act(self._lanes.update(changed, gone, self._clock.monotonic()))
        self.send(len(changed))

    def close(self) -> None:
        """Forget what is queued; workers end when they have done what they took."""
        self._draining = True
        self._lanes.clear()
        while self._idle_workers:
            self._wake_worker()

    def _act(self, decided: Decisions | None) -> None:
        if decided is None:
            return
        for job in decided.given_back:
            self._recorder.put(job, DeliveryState.WAITING)
        for job in decided.orphaned:
            self._recorder.put(job, DeliveryState.CANCELLED, reason="the endpoint was deleted")
        for change in decided.changes:
            _tell(change)
        if decided.room:
            self._room.set()
        if decided.refill:
            self._refill.set()

    def _begin_watching(self) -> None:
        if self._lanes.watched:
            self._watching = True
            self._watch.set()

    def _wake_for_turn(self, most: int) -> bool:
        """Wake up to so many workers; return whether there are others that could begin."""
        with_turn = self._lanes.proven_with_turn + self._lanes.unproven_with_turn
        if not with_turn:
            return False
        for _ in range(min(most, len(self._idle_workers))):
            self._wake_worker()
        return bool(self._idle_workers)

    def _with_turn(self) -> int:
        """How many lanes could begin a request in this turn of the event loop."""
        count = self._lanes.proven_with_turn
        if self._lanes.unproven_with_turn:
            if self._loop_turn.admits_unproven:
                return count + self._lanes.unproven_with_turn
            self._loop_turn.refuse_unproven()
        return count

    def _wake_workers(self, most: int) -> None:
        """Wake as many as can begin, but not more; each of them wakes another while there is more to do."""
        if self._idle_workers:
            for _ in range(min(most, self._with_turn())):
                self._wake_worker()

    def _wake_worker(self) -> None:
        while self._idle_workers:
            worker = self._idle_workers.popleft()
            if not worker.done():
                worker.set_result(None)
                return


def _tell(change: LaneChange) -> None:
    facts: dict[str, object] = {"endpoint": endpoint_public_id(change.endpoint_id)}
    for name in ("latency_ms", "concurrency", "pause_s", "reason"):
        fact = getattr(change, name)
        if fact is not None:
            facts[name] = fact
    match change.event:
        case LaneEvent.SLOW:
            log.info("lane.slow", **facts)
        case LaneEvent.FAST:
            log.info("lane.fast", **facts)
        case LaneEvent.BROKEN:
            log.warning("lane.broken", **facts)
        case LaneEvent.THROTTLED:
            log.info("lane.throttled", **facts)
        case LaneEvent.RECOVERING:
            log.info("lane.recovering", **facts)
        case LaneEvent.RECOVERED:
            log.info("lane.recovered", **facts)
        case _:
            assert_never(change.event)

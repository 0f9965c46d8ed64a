"""From the outbox to the lanes: claims a batch of pending events, matches each to its endpoints, and lets the
fan-outs go on.

Woken by the listener, and by room in the lanes; it polls while it is busy, and once a second when idle.
"""

from collections import deque
from dataclasses import dataclass

import structlog

from postrider.edges.clock import Clock
from postrider.engine.endpoints import EndpointSnapshot
from postrider.engine.fan_outs import FanOuts
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Ledger
from postrider.engine.recorder import Recorder
from postrider.engine.signals import Signal
from postrider.store import daemons, outbox
from postrider.store.database import Database
from postrider.store.kept_connection import KeptConnection, kept_connection
from postrider.store.outbox import ClaimedEvents, Pending

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DispatcherTuning:
    batch: int = 512
    """Events per claim."""
    max_parked: int = 512
    """Events that may wait for lanes which are full for a moment, while others are claimed."""
    max_large: int = 16_384
    """Large fan-outs under way while others are claimed."""
    busy_from: int = 32
    """After a claim of so many events the next look comes soon."""
    busy_rate: float = 1000
    """Events per second from which on notifications cost writers more than they gain: NOTIFY holds a lock of
    the whole cluster through commit."""
    idle_rate: float = 500
    """Below this they are worth it again."""
    rate_window_s: float = 0.3
    """Over which that is measured: after a single burst, notifications are still quicker than polls."""
    load_window_s: float = 0.1
    load_windows: int = 3
    """The busiest of so many counts."""
    saturated_from: float = 0.6
    """Share of the time that the daemon runs, or waits for a core, when it can't do more."""
    busy_poll_s: float = 0.01
    """While polling finds more than notifications would, and while what is claimed waits for lanes."""
    reconcile_s: float = 30.0
    """How often to compare the claims in the database with those in memory: a crash of the server may have
    undone what we were told was committed."""
    backstop_s: tuple[float, ...] = (0.01, 0.05, 0.25, 1.0)
    """Waits of an idle dispatcher. A writer that saw the flag `idle` just before it was set sends no
    notification, so the first polls come soon; the last one repeats."""
    unnotified_s: tuple[float, ...] = (0.01, 0.05)
    """The same where writers never notify."""


@dataclass(frozen=True, slots=True)
class DispatchCounts:
    claimed: int
    offered: int
    spilled: int
    more: bool
    """More events may be there to be claimed at once."""
    held_up: bool
    """There was no room to claim."""


class Dispatcher:
    def __init__(
        self,
        tuning: DispatcherTuning,
        *,
        database: Database,
        pending: Pending,
        endpoints: EndpointSnapshot,
        lanes: Lanes,
        fan_outs: FanOuts,
        recorder: Recorder,
        ledger: Ledger,
        clock: Clock,
        notify: bool | None,
        wake: Signal,
        doubt: Signal,
    ) -> None:
        """`notify`: whether writers shall notify; None: as the database has it. `wake`: there may be events,
        or room for them; `doubt`: memory and database may differ about our claims, which are compared before
        the next one."""
        self._tuning = tuning
        self._database = database
        self._lender: Database | KeptConnection = database
        """Of connections for claims."""
        self._pending = pending
        self._endpoints = endpoints
        self._lanes = lanes
        self._fan_outs = fan_outs
        self._recorder = recorder
        self._ledger = ledger
        self._clock = clock
        self._wake = wake
        self._doubt = doubt
        self._idle: bool | None = None
        """What writers were told; None while that is unknown."""
        self._notify = notify
        self._notified = True
        """Whether they heed it."""
        self._reconcile_at = clock.monotonic() + tuning.reconcile_s
        self._loads = deque([1.0] * tuning.load_windows, tuning.load_windows)
        """Shares of the time in which the daemon was busy lately; taken for all of it until measured."""
        self._measured_at, self._measured_busy = clock.monotonic(), clock.busy()
        self.turned_at = clock.monotonic()
        """When the claim loop turned last; the watchdog and /healthz look at it."""

    def __repr__(self) -> str:
        state = "idle" if self._idle else "saturated" if self._saturated else "busy"
        return f"<Dispatcher {state} {self._fan_outs}>"

    @property
    def _saturated(self) -> bool:
        """The daemon as a whole is at its limit."""
        return max(self._loads) >= self._tuning.saturated_from

    def configure(self, notify: bool | None) -> None:
        """Take over what a new configuration says."""
        self._notify = notify
        self._idle = None
        self._wake.set()

    async def run(self) -> None:
        async with kept_connection(self._database) as self._lender:
            await self._keep_claiming()

    async def _keep_claiming(self) -> None:
        tuning = self._tuning
        began, seen, empty = self._clock.monotonic(), 0, 0
        self._measured_at, self._measured_busy = began, self._clock.busy()
        while True:
            self.turned_at = self._clock.monotonic()
            self._wake.clear()  # before the claim: a wake-up that comes during it is not lost
            counts = await self.run_once()
            claimed = counts.claimed
            seen, empty = seen + claimed, 0 if claimed else empty + 1
            passed = self._clock.monotonic() - began
            if passed >= tuning.rate_window_s:
                bound = tuning.idle_rate if self._idle is False else tuning.busy_rate
                await self._set_idle(seen / passed < bound)
                began, seen = self._clock.monotonic(), 0
            elif self._idle is None:
                await self._set_idle(claimed < tuning.busy_from)
            if counts.held_up or self._fan_outs:
                continue
            if claimed < tuning.busy_from and self._idle:
                waits = tuning.backstop_s if self._notified else tuning.unnotified_s
                await self._wake.wait(self._clock, waits[min(empty, len(waits) - 1)])
            elif not counts.more:
                await self._wake.wait(self._clock, tuning.busy_poll_s)

    async def run_once(self) -> DispatchCounts:
        """Claim one batch when there is room for it, and go on with the fan-outs under way."""
        self._measure_load()
        may_claim = self._may_claim()
        claimed, more = await self._claim() if may_claim else (0, False)
        progress = await self._fan_outs.advance(patient=self._saturated)
        if (self._fan_outs or not may_claim) and not (claimed or progress.any):
            await self._room_for_more()
        return DispatchCounts(claimed, progress.to_lanes, progress.to_database, more, not may_claim)

    def _may_claim(self) -> bool:
        return (
            self._ledger.claim_room() > 0
            and not self._recorder.congested
            and self._fan_outs.small < self._tuning.max_parked
            and self._fan_outs.large < self._tuning.max_large
        )

    async def _claim(self) -> tuple[int, bool]:
        """Claim a batch of events; return (how many there were, whether there may be more)."""
        owner = self._ledger.owner
        try:
            if self._doubt or self._clock.monotonic() >= self._reconcile_at:
                await self._reconcile()
            async with self._lender.connection() as connection:
                claimed = await self._pending.claim(
                    connection, owner, self._tuning.batch, self._ledger.claim_room()
                )
            if claimed is None:
                return 0, False
            await self._endpoints.reach(claimed.version)
        except BaseException:
            self._doubt.set()
            raise
        if self._ledger.owner != owner:
            return 0, False  # others took us for dead, and take the claim too
        return self._take(claimed), claimed.more

    def _take(self, claimed: ClaimedEvents) -> int:
        """Hold what was claimed, and begin its fan-out; return how many events that are."""
        endpoints = [self._endpoints.match(each.workspace_id, each.type) for each in claimed.events]
        claim = self._ledger.take_claim(
            claimed.claim_id,
            [(event, len(found)) for event, found in zip(claimed.events, endpoints, strict=True)],
            claimed.missing,
        )
        if claimed.missing:
            log.error("event.missing", events=claimed.missing, reason="their outbox rows are gone")
            self._recorder.finish(claim, claimed.missing)
        redo = set(claimed.redo)
        for event, found in zip(list(claim.events), endpoints, strict=True):
            if not found:
                self._recorder.finish_event(event)
                continue
            self._fan_outs.add(event, found, redo=event.held.event.id in redo)
        return len(claimed.events) + claimed.missing

    def _measure_load(self) -> None:
        now = self._clock.monotonic()
        passed = now - self._measured_at
        if passed >= self._tuning.load_window_s:
            busy = self._clock.busy()
            self._loads.append((busy - self._measured_busy) / passed)
            self._measured_at, self._measured_busy = now, busy

    async def _room_for_more(self) -> None:
        """Wait until the lanes have room again, or there is something new; or a moment, since that may change
        otherwise."""
        self.turned_at = self._clock.monotonic()
        self._lanes.want_room(self._fan_outs.full)
        await self._wake.wait(self._clock, self._tuning.busy_poll_s)

    async def _reconcile(self) -> None:
        """Abandon claims of which the database counts less than was recorded, and give back those that we
        don't know: a crash, or an answer that was cut off, made the difference."""
        if self._doubt.take():  # first: a doubt that comes meanwhile is not lost
            self._pending.look_at_all()
            self._idle = None
        known = self._ledger.claims()
        async with self._database.connection() as connection:
            found = await outbox.claims(connection, self._ledger.owner)
        undone = self._ledger.abandon_undone(found, known)
        stray = found.keys() - self._ledger.claims().keys()
        if stray:
            async with self._database.transaction() as connection:
                events = await outbox.release(connection, self._ledger.owner, stray)
            log.info("claims.reconciled", events=events, undone=undone)
            self._pending.look_at_all()
        if self._idle is not None:
            await self._tell(self._idle)  # another daemon may have changed whether writers notify
        self._reconcile_at = self._clock.monotonic() + self._tuning.reconcile_s

    async def _set_idle(self, idle: bool) -> None:
        if self._idle is not idle:
            await self._tell(idle)

    async def _tell(self, idle: bool) -> None:
        self._idle = None  # until it is certain
        notify = self._notify
        async with self._database.connection() as connection:
            notified = await daemons.set_idle(connection, self._ledger.owner, idle=idle, notify=notify)
        if notified is not self._notified:
            log.info("notify.changed", notify=notified, configured=notify)
        self._notified = notified
        if notify is self._notify:  # else a new configuration came meanwhile
            self._idle = idle

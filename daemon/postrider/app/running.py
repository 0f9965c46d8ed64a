"""Which services run, in which order they start, and when each of them stops."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from postrider.app.composition import Services
from postrider.engine.supervisor import Supervisor


class StopPhase(IntEnum):
    """Each is over before the next one begins: what produces stops before what consumes."""

    TAKING_ON = 1
    """Nothing new is begun. Then requests under way have the grace to end."""
    SENDING = 2
    """The last requests are cut off, and given back unsent."""
    RECORDING = 3
    """No transaction is begun. Then what is still queued is recorded."""
    LOOKING_ON = 4
    """Nobody is told any more how it goes. Then claims go back."""


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    run: Callable[[], Awaitable[None]]
    stops: StopPhase


def running_services(
    services: Services, concurrency: int, watch: Callable[[], Awaitable[None]] | None
) -> list[Service]:
    """In the order in which they start: what consumes before what produces. `concurrency`: requests at a
    time; `watch` tells systemd that the claim loop turns, where it asked for that."""
    phase, each = StopPhase, services
    return [
        # Those that tell how it goes see the first failure and the last one.
        Service("failures", each.failures.run, phase.LOOKING_ON),
        Service("reporter", each.reporter.run, phase.LOOKING_ON),
        # The end of a long grace is no reason to take the daemon for dead, or for one that hangs.
        Service("listener", each.listener.run, phase.LOOKING_ON),
        *([] if watch is None else [Service("watchdog", watch, phase.LOOKING_ON)]),
        # They write what the recorder tells, until nothing more is recorded.
        Service("disabler", each.disabler.run, phase.LOOKING_ON),
        Service("last deliveries", each.last_deliveries.run, phase.LOOKING_ON),
        # Requests that end within the grace are recorded as they end.
        Service("recorder", each.recorder.run, phase.RECORDING),
        Service("sender", lambda: each.sender.run(concurrency), phase.SENDING),
        # What lanes and endpoints decide from here on would only be given back.
        Service("lanes", each.keeper.run, phase.TAKING_ON),
        Service("endpoints", each.snapshot.run, phase.TAKING_ON),
        # They claim.
        Service("scheduler", each.scheduler.run, phase.TAKING_ON),
        Service("dispatcher", each.dispatcher.run, phase.TAKING_ON),
        # They change what others work with, or wait for locks: a stop need not wait for them.
        Service("janitor", each.janitor.run, phase.TAKING_ON),
        Service("recoverer", each.recoverer.run, phase.TAKING_ON),
        Service("secret sealer", each.secret_sealer.run, phase.TAKING_ON),
        Service("partitions", each.partitions.run, phase.TAKING_ON),
        Service("schema watch", each.schema_watch.run, phase.TAKING_ON),
    ]


class Running:
    """The services of a list, from their start on."""

    def __init__(self, services: Sequence[Service], supervisor: Supervisor) -> None:
        self.services = services
        self._supervisor = supervisor
        for each in services:
            supervisor.start(each.name, each.run)

    def __repr__(self) -> str:
        return f"<Running {self._supervisor}>"

    async def stop(self, phase: StopPhase) -> None:
        """Stop those of a phase, and wait until they ended."""
        await self._supervisor.stop(each.name for each in self.services if each.stops is phase)
